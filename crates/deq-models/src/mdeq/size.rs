//! Trained numbers by configuration, without making the model.

use super::config::{MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig};
use super::head::EXPANSION;

impl MdeqConfig {
    /// The trained numbers of stem and cell, without running statistics.
    pub fn parameters(&self) -> usize {
        self.stem() + self.blocks() + self.fusion()
    }

    fn stem(&self) -> usize {
        let channels = self.channels[0];
        let injection = match self.has_injection_layer() {
            true => conv_norm(channels, channels, 1),
            false => 0,
        };
        conv_norm(3, channels, 3) + conv_norm(channels, channels, 3) + injection
    }

    fn blocks(&self) -> usize {
        let block = |channels: usize| {
            let wide = channels * self.expansion;
            let gains = if self.weight_norm { wide + channels } else { 0 };
            let norms = if self.block_affine {
                2 * wide + 4 * channels
            } else {
                0
            };
            2 * conv(channels, wide, 3) + gains + norms
        };
        self.channels.iter().map(|&c| self.blocks * block(c)).sum()
    }

    fn fusion(&self) -> usize {
        let step = |input, output, kernel| {
            let norm = if self.fusion_affine { 2 * output } else { 0 };
            conv(input, output, kernel) + norm
        };
        let way = |from: usize, to: usize| {
            let (input, output) = (self.channels[from], self.channels[to]);
            match from > to {
                true => step(input, output, 1),
                false if from == to => 0,
                false => (to - from - 1) * step(input, input, 3) + step(input, output, 3),
            }
        };
        let post = |channels: usize| {
            let gains = if self.weight_norm { channels } else { 0 };
            let norm = if self.post_fusion_affine {
                2 * channels
            } else {
                0
            };
            conv(channels, channels, 1) + gains + norm
        };
        let branches = 0..self.channels.len();
        let ways = branches
            .clone()
            .flat_map(|to| branches.clone().map(move |from| (from, to)));
        ways.map(|(from, to)| way(from, to)).sum::<usize>()
            + self.channels.iter().map(|&c| post(c)).sum::<usize>()
    }
}

impl MdeqClassifierConfig {
    /// The trained numbers of the model, without running statistics.
    pub fn parameters(&self) -> usize {
        let bottleneck = |(&input, &inner): (&usize, &usize)| {
            let output = inner * EXPANSION;
            let shortcut = if input == output {
                0
            } else {
                conv_norm(input, output, 1)
            };
            conv(input, inner, 1) + conv(inner, inner, 3) + conv(inner, output, 1) + shortcut
        };
        let branches = self.backbone.channels.iter().zip(&self.head_channels);
        let merge = |pair: &[usize]| {
            let output = pair[1] * EXPANSION;
            conv_norm(pair[0] * EXPANSION, output, 3) + output
        };
        let coarsest = self.head_channels[self.head_channels.len() - 1] * EXPANSION;
        self.backbone.parameters()
            + branches.map(bottleneck).sum::<usize>()
            + self.head_channels.windows(2).map(merge).sum::<usize>()
            + conv_norm(coarsest, self.final_channels, 1)
            + self.final_channels
            + (self.final_channels + 1) * self.num_classes
    }
}

impl MdeqSegmenterConfig {
    /// The trained numbers of the model, without running statistics.
    pub fn parameters(&self) -> usize {
        let channels: usize = self.backbone.channels.iter().sum();
        self.backbone.parameters()
            + conv_norm(channels, channels, 1)
            + channels
            + conv(channels, self.num_classes, self.final_kernel)
            + self.num_classes
    }
}

fn conv(input: usize, output: usize, kernel: usize) -> usize {
    input * output * kernel * kernel
}

/// With a batch norm.
fn conv_norm(input: usize, output: usize, kernel: usize) -> usize {
    conv(input, output, kernel) + 2 * output
}
