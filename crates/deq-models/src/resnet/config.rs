//! What describes a residual network.

use super::network::ResNet;
use crate::error::{ModelError, require_memory};
use burn::config::Config;
use burn::tensor::Device;

/// Which blocks a [`ResNet`] is made of.
#[derive(Config, Copy, Debug, PartialEq, Eq)]
pub enum ResNetBlockKind {
    /// Two 3x3 convolutions: ResNet-18 and -34.
    Basic,
    /// 1x1, 3x3, 1x1 to four times the channels: ResNet-50 and deeper.
    Bottleneck,
}

impl ResNetBlockKind {
    /// Channels that a block puts out over its width.
    pub fn expansion(self) -> usize {
        match self {
            ResNetBlockKind::Basic => 1,
            ResNetBlockKind::Bottleneck => 4,
        }
    }
}

/// Configuration of [`ResNet`].
#[derive(Config, Debug, PartialEq)]
pub struct ResNetConfig {
    /// Classes.
    pub num_classes: usize,
    /// The blocks.
    pub kind: ResNetBlockKind,
    /// Blocks of each stage. Every stage doubles the channels of the one before and halves its
    /// resolution.
    pub stages: Vec<usize>,
    /// Channels of the stem and of the first stage's blocks. Default 64, torchvision's; choose it
    /// to match the parameters of another model.
    #[config(default = 64)]
    pub width: usize,
    /// A 3x3 stem that keeps the resolution, without pooling, for images of 32 by 32, instead of a
    /// 7x7 stem and a pooling that quarter it. Default off, torchvision's.
    #[config(default = false)]
    pub small_images: bool,
}

impl ResNetConfig {
    /// ResNet-18: 11,689,512 parameters with 1000 classes.
    pub fn resnet18(num_classes: usize) -> Self {
        Self::new(num_classes, ResNetBlockKind::Basic, vec![2, 2, 2, 2])
    }

    /// ResNet-50: 25,557,032 parameters with 1000 classes.
    pub fn resnet50(num_classes: usize) -> Self {
        Self::new(num_classes, ResNetBlockKind::Bottleneck, vec![3, 4, 6, 3])
    }

    /// ResNet-101: 44,549,160 parameters with 1000 classes.
    pub fn resnet101(num_classes: usize) -> Self {
        Self::new(num_classes, ResNetBlockKind::Bottleneck, vec![3, 4, 23, 3])
    }

    /// The trained numbers of the network, without running statistics.
    pub fn parameters(&self) -> usize {
        let kernel = if self.small_images { 3 } else { 7 };
        let conv = |input: usize, output: usize, kernel: usize| {
            input * output * kernel * kernel + 2 * output
        };
        let mut count = conv(3, self.width, kernel);
        let mut input = self.width;
        for (stage, &blocks) in self.stages.iter().enumerate() {
            let width = self.width << stage;
            let output = width * self.kind.expansion();
            for block in 0..blocks {
                count += match self.kind {
                    ResNetBlockKind::Basic => conv(input, width, 3) + conv(width, width, 3),
                    ResNetBlockKind::Bottleneck => {
                        conv(input, width, 1) + conv(width, width, 3) + conv(width, output, 1)
                    }
                };
                if block == 0 && (stage > 0 || input != output) {
                    count += conv(input, output, 1);
                }
                input = output;
            }
        }
        count + (input + 1) * self.num_classes
    }

    /// The same network with the width whose parameters come closest to `parameters`, from above or
    /// below.
    #[must_use]
    pub fn with_parameters_near(self, parameters: usize) -> Self {
        let at = |width| self.clone().with_width(width);
        let mut width = 1;
        while at(width).parameters() < parameters {
            width += 1;
        }
        let distance = |width| at(width).parameters().abs_diff(parameters);
        if width > 1 && distance(width - 1) < distance(width) {
            width -= 1;
        }
        at(width)
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelError> {
        let stages = self.stages.iter().map(|&blocks| ("stages", blocks));
        let fields = [
            ("num_classes", self.num_classes),
            ("width", self.width),
            ("stages", self.stages.len()),
        ];
        for (field, value) in fields.into_iter().chain(stages) {
            let (most, requirement) = match field {
                // Every stage doubles the channels.
                "stages" => (256, "from 1 to 256 blocks in each of at most 8 stages"),
                _ => (1 << 16, "from 1 to 65536"),
            };
            let too_many = field == "stages" && self.stages.len() > 8;
            if !(1..=most).contains(&value) || too_many {
                return Err(ModelError::OutOfRange {
                    field,
                    value: value as f64,
                    requirement,
                });
            }
        }
        Ok(())
    }

    /// Makes the network with random weights on `device`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn init(&self, device: &Device) -> Result<ResNet, ModelError> {
        self.validate()?;
        require_memory(self.parameters())?;
        Ok(ResNet::new(self, device))
    }
}
