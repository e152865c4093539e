//! Numbers of a model and of a training step by configuration, without making the model.

use super::config::{MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig};
use super::head::EXPANSION;
use crate::memory::StepNumbers;
use std::cmp::Ordering;

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

/// What a step on normalised maps leaves: how often the numbers of an output are kept by a recorded
/// application, by its linearisation, and by the penalty. The first is that of a step that ends a
/// way, the second that of one with a ReLU behind it.
const LAST: [usize; 3] = [1, 1, 4];
const INNER: [usize; 3] = [2, 2, 6];

impl MdeqConfig {
    /// The numbers that a training step holds on images of `sides`, height and width, but for those
    /// of the head. `on_host` says whether it runs by the kernels of the CPU.
    ///
    /// Norms are taken to have scale and shift; those without need less.
    fn step_numbers(&self, batch: usize, sides: [usize; 2], on_host: bool) -> StepNumbers {
        let pixels = |level: usize| self.pixels(batch, sides, level);
        let map = |level: usize| self.channels[level] * pixels(level);
        let state: usize = (0..self.channels.len()).map(map).sum();
        let wide = self.expansion * state;
        // Normalised weights: two convolutions of each block, one behind each fusion.
        let normed = |&c: &usize| c * (18 * c * self.expansion * self.blocks + c);
        let weights: usize = self.channels.iter().map(normed).sum();
        let [way_tape, way_point, way_penalty] = self.ways(pixels);
        let post = usize::from(self.post_fusion_affine);
        // A convolution, its norm and its ReLU each leave the first size or the finest branch's.
        let stem = match self.downsample_times {
            0 => 2 + usize::from(self.has_injection_layer()),
            1 => 3,
            _ => 4 + 2,
        };
        let block = 2 * wide + 4 * state;
        let tape = self.blocks * block + (3 + post) * state + way_tape;
        // The wide maps three times forward and three times in the tangent.
        let block = 6 * wide + 10 * state;
        let probe = self.blocks * block + (13 + post) * state + way_penalty;
        let constants = 3 * stem * map(0) + weights;
        let (arranged, arranging) = match on_host {
            true => self.arranged(sides),
            // Channels last.
            false => (self.blocks() + self.fusion(), 0),
        };
        StepNumbers {
            state,
            constants,
            arranged,
            shared: if on_host { 2 * arranged } else { 0 },
            // Wide maps of the finest branch twice, padded or normalised.
            evaluation: ((2 * self.expansion + 1) * map(0)).max(arranging),
            tape,
            // Both as rows and as parts.
            reached: 4 * state,
            // Of the wide norm the normalised maps, and where the ReLU is on; five maps.
            point: self.blocks * (2 * wide + 3 * state) + 2 * state + way_point,
            backward: 2 * self.expansion * map(0) + 3 * state,
            weights: self.parameters() + weights,
            probe,
            ..StepNumbers::default()
        }
    }

    /// Weights of the cell as kernels of the CPU arrange them, and what arranging the largest
    /// takes: 16 numbers for 9 where maps are worked on by tiles of two pixels each way.
    fn arranged(&self, [height, width]: [usize; 2]) -> (usize, usize) {
        let tiles =
            |side: usize, level: usize| (side >> (self.downsample_times + level)).div_ceil(2);
        let levels = self.channels.iter().enumerate();
        let tiled = levels.filter(|&(level, &channels)| {
            channels >= 16 && tiles(height, level) * tiles(width, level) >= 16
        });
        let pairs: Vec<usize> = tiled.map(|(_, c)| c * c * self.expansion).collect();
        let more = 14 * self.blocks * pairs.iter().sum::<usize>();
        let largest = 16 * pairs.into_iter().max().unwrap_or(0);
        (self.blocks() + self.fusion() + more, largest)
    }

    /// Samples times pixels of a branch.
    fn pixels(&self, batch: usize, [height, width]: [usize; 2], level: usize) -> usize {
        let halvings = self.downsample_times + level;
        batch * (height >> halvings) * (width >> halvings)
    }

    /// The numbers that the ways between branches leave, as in [`LAST`].
    fn ways(&self, pixels: impl Fn(usize) -> usize) -> [usize; 3] {
        let mut sums = [0; 3];
        let mut add = |channels: usize, level: usize, kept: [usize; 3]| {
            let numbers = channels * pixels(level);
            sums.iter_mut()
                .zip(kept)
                .for_each(|(sum, kept)| *sum += kept * numbers);
        };
        for (to, &output) in self.channels.iter().enumerate() {
            for (from, &input) in self.channels.iter().enumerate() {
                for level in from + 1..to {
                    add(input, level, INNER);
                }
                match from.cmp(&to) {
                    Ordering::Less => add(output, to, LAST),
                    // Before the maps are scaled up.
                    Ordering::Greater => add(output, from, LAST),
                    Ordering::Equal => {}
                }
            }
        }
        sums
    }
}

impl MdeqClassifierConfig {
    /// The numbers that a training step holds on `batch` images of `sides`, height and width.
    /// `on_host` says whether it runs by the kernels of the CPU.
    pub fn step_numbers(&self, batch: usize, sides: [usize; 2], on_host: bool) -> StepNumbers {
        let pixels = |level: usize| self.backbone.pixels(batch, sides, level);
        let last = self.final_channels * pixels(self.head_channels.len() - 1);
        let branch = |(level, &inner): (usize, &usize)| {
            // Behind two convolutions and norms; of the widened maps, behind the last convolution
            // and the shortcut, and the sum; but for the finest, behind the merge as well.
            let widened = EXPANSION * if level == 0 { 4 } else { 6 };
            (6 + widened) * inner * pixels(level)
        };
        let own = self.backbone.step_numbers(batch, sides, on_host);
        let branches = self.head_channels.iter().enumerate().map(branch);
        let head = self.parameters() - self.backbone.parameters();
        let output = branches.sum::<usize>() + 2 * last;
        StepNumbers {
            parameters: self.parameters(),
            head,
            output,
            output_peak: 3 * last,
            weights: own.weights + head,
            ..own
        }
    }

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
    /// The numbers that a training step holds on `batch` images of `sides`, height and width, with
    /// a loss over all pixels of the image. `on_host` says whether it runs by the kernels of the
    /// CPU.
    pub fn step_numbers(&self, batch: usize, sides: [usize; 2], on_host: bool) -> StepNumbers {
        let channels: usize = self.backbone.channels.iter().sum();
        let mixed = channels * self.backbone.pixels(batch, sides, 0);
        let targets = batch * sides[0] * sides[1];
        let scores = self.num_classes * targets;
        let own = self.backbone.step_numbers(batch, sides, on_host);
        let head = self.parameters() - self.backbone.parameters();
        // All branches at the finest resolution, behind the convolution, the norm, the ReLU.
        let output = 4 * mixed + 2 * scores;
        StepNumbers {
            parameters: self.parameters(),
            head,
            output,
            output_peak: (2 * scores + 3 * targets).max(2 * mixed),
            kept: scores,
            weights: own.weights + head,
            ..own
        }
    }

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
