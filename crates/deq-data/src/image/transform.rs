//! What happens to an example between file and batch.

use super::dataset::{Example, Target};
use super::random::{Stream, generator, uniform};
use super::raster::{IGNORE_LABEL, Picture, Window};
use crate::error::DataError;
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Cutting, flipping and scaling, the same for image and labels. Images are interpolated (bilinear,
/// antialiased), labels take the nearest.
///
/// All but [`Whole`](Self::Whole) and [`PadToMultiple`](Self::PadToMultiple) give images of one
/// size whatever the size of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// Nothing: for images that all have one size.
    Whole,
    /// Resizing to a fixed size, whatever the shape was.
    Resize {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A random square of `size` from the image with a black border of `pad`, flipped half of the
    /// time: torchvision's `RandomCrop(size, padding=pad)` and `RandomHorizontalFlip`, which
    /// CIFAR-10 is trained with.
    PadCrop {
        /// Columns and rows of the result.
        size: usize,
        /// Width of the border.
        pad: usize,
    },
    /// A random part of the image resized to a square, flipped half of the time: torchvision's
    /// `RandomResizedCrop` and `RandomHorizontalFlip`, which ImageNet is trained with. The part has
    /// 8 to 100 % of the area and a shape between 3:4 and 4:3; if ten tries do not fit, the largest
    /// central part of such a shape is taken.
    RandomResizedCrop {
        /// Columns and rows of the result.
        size: usize,
    },
    /// The shorter side resized to `resize` and the central square of `crop` taken: torchvision's
    /// `Resize` and `CenterCrop`, which ImageNet is evaluated with.
    CenterCrop {
        /// Length of the shorter side.
        resize: usize,
        /// Columns and rows of the result, at most `resize`.
        crop: usize,
    },
    /// Nothing but a border below and to the right, so that both sides are multiples of a number:
    /// for segmentation by models with several resolutions. The border is black, with
    /// [`IGNORE_LABEL`].
    PadToMultiple {
        /// What the sides become multiples of.
        multiple: usize,
    },
    /// Scaled by a random factor, then a random rectangle, flipped half of the time: for
    /// segmentation. Where the scaled image is smaller than the rectangle, the image is filled with
    /// black and the labels with [`IGNORE_LABEL`].
    ScaleCrop {
        /// Columns of the result.
        width: usize,
        /// Rows of the result.
        height: usize,
        /// The smallest factor; 0.5 in the training of HRNet, whose schedule multiscale equilibrium
        /// models follow.
        min_scale: f64,
        /// The largest factor; 2 there.
        max_scale: f64,
    },
}

/// The area of a random resized crop relative to the image, as in torchvision and in the training
/// of Inception.
const AREA: (f64, f64) = (0.08, 1.0);
/// Its width over its height.
const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

impl Transform {
    /// Checks that sizes and scales mean something.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] naming the field.
    pub fn validate(&self) -> Result<(), DataError> {
        let require = |valid, field, value: f64, requirement| match valid {
            true => Ok(()),
            false => Err(DataError::OutOfRange {
                field,
                value,
                requirement,
            }),
        };
        let size = |field, value: usize| {
            let range = "from 1 to 16384";
            require((1..=16_384).contains(&value), field, value as f64, range)
        };
        match *self {
            Transform::Whole => Ok(()),
            Transform::PadToMultiple { multiple } => size("multiple", multiple),
            Transform::Resize { width, height } => {
                size("width", width).and_then(|()| size("height", height))
            }
            Transform::PadCrop { size: side, pad } => {
                size("size", side)?;
                require(pad <= 16_384, "pad", pad as f64, "at most 16384")
            }
            Transform::RandomResizedCrop { size: side } => size("size", side),
            Transform::CenterCrop { resize, crop } => {
                size("resize", resize)?;
                size("crop", crop)?;
                require(crop <= resize, "crop", crop as f64, "at most `resize`")
            }
            Transform::ScaleCrop {
                width,
                height,
                min_scale,
                max_scale,
            } => {
                size("width", width)?;
                size("height", height)?;
                let valid = (0.01..=100.0).contains(&min_scale);
                require(valid, "min_scale", min_scale, "from 0.01 to 100")?;
                let valid = (min_scale..=100.0).contains(&max_scale);
                require(valid, "max_scale", max_scale, "from `min_scale` to 100")
            }
        }
    }

    /// Whether the result depends on random numbers.
    pub fn is_random(&self) -> bool {
        matches!(
            self,
            Transform::PadCrop { .. }
                | Transform::RandomResizedCrop { .. }
                | Transform::ScaleCrop { .. }
        )
    }

    /// The example after the transform. What is random depends on `seed`, `epoch` and `index`
    /// alone.
    ///
    /// # Panics
    ///
    /// If the transform is not [valid](Self::validate).
    pub fn apply(&self, example: Example, seed: u64, epoch: usize, index: usize) -> Example {
        let mut rng = generator(seed, Stream::Augmentation, epoch as u64, index as u64);
        self.apply_with(example, &mut rng)
    }

    fn apply_with(&self, example: Example, rng: &mut ChaCha8Rng) -> Example {
        let (width, height) = (example.picture.width(), example.picture.height());
        match *self {
            Transform::Whole => example,
            Transform::PadToMultiple { multiple } => {
                let size = (
                    width.next_multiple_of(multiple),
                    height.next_multiple_of(multiple),
                );
                example.cropped((0, 0), size)
            }
            Transform::Resize {
                width: to_width,
                height: to_height,
            } => example.resized(example.picture.window(), (to_width, to_height)),
            Transform::PadCrop { size, pad } => {
                let place = |rng: &mut ChaCha8Rng, length: usize| {
                    let room = length + 2 * pad;
                    let first = if room > size {
                        rng.random_range(0..=room - size)
                    } else {
                        0
                    };
                    first as isize - pad as isize
                };
                let top = place(rng, height);
                let left = place(rng, width);
                let cut = example.cropped((left, top), (size, size));
                maybe_flip(cut, rng)
            }
            Transform::RandomResizedCrop { size } => {
                let window = random_window(width, height, rng);
                maybe_flip(example.resized(window, (size, size)), rng)
            }
            Transform::CenterCrop { resize, crop } => {
                let short = width.min(height);
                let scaled = |length: usize| (resize * length / short).max(resize);
                let (width, height) = (scaled(width), scaled(height));
                let example = example.resized(example.picture.window(), (width, height));
                // Half a pixel is rounded to even, as Python does.
                let middle =
                    |length: usize| ((length - crop) as f64 / 2.0).round_ties_even() as isize;
                example.cropped((middle(width), middle(height)), (crop, crop))
            }
            Transform::ScaleCrop {
                width: to_width,
                height: to_height,
                min_scale,
                max_scale,
            } => {
                let factor = uniform(rng, min_scale, max_scale);
                let scaled = |length: usize| ((length as f64 * factor).round() as usize).max(1);
                let (width, height) = (scaled(width), scaled(height));
                let example = example.resized(example.picture.window(), (width, height));
                let top = rng.random_range(0..=height.saturating_sub(to_height)) as isize;
                let left = rng.random_range(0..=width.saturating_sub(to_width)) as isize;
                let cut = example.cropped((left, top), (to_width, to_height));
                maybe_flip(cut, rng)
            }
        }
    }
}

impl Example {
    fn resized(&self, window: Window, size: (usize, usize)) -> Self {
        Self {
            picture: self.picture.resized(window, size),
            target: match &self.target {
                Target::Class(class) => Target::Class(*class),
                Target::Map(map) => Target::Map(map.resized(window, size)),
            },
            cut_short: self.cut_short.clone(),
        }
    }

    fn cropped(&self, corner: (isize, isize), size: (usize, usize)) -> Self {
        Self {
            picture: self.picture.cropped(corner, size, [0; 3]),
            target: match &self.target {
                Target::Class(class) => Target::Class(*class),
                Target::Map(map) => Target::Map(map.cropped(corner, size, [IGNORE_LABEL])),
            },
            cut_short: self.cut_short.clone(),
        }
    }
}

fn maybe_flip(example: Example, rng: &mut ChaCha8Rng) -> Example {
    if !rng.random::<bool>() {
        return example;
    }
    Example {
        picture: example.picture.flipped(),
        target: match example.target {
            Target::Class(class) => Target::Class(class),
            Target::Map(map) => Target::Map(map.flipped()),
        },
        cut_short: example.cut_short,
    }
}

/// The window of torchvision's `RandomResizedCrop.get_params`.
fn random_window(width: usize, height: usize, rng: &mut ChaCha8Rng) -> Window {
    let (w, h) = (width as f64, height as f64);
    for _ in 0..10 {
        let area = w * h * uniform(rng, AREA.0, AREA.1);
        let ratio = uniform(rng, RATIO.0.ln(), RATIO.1.ln()).exp();
        let cut_width = (area * ratio).sqrt().round_ties_even() as usize;
        let cut_height = (area / ratio).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&cut_width) && (1..=height).contains(&cut_height) {
            let top = rng.random_range(0..=height - cut_height);
            let left = rng.random_range(0..=width - cut_width);
            return Window {
                left,
                top,
                width: cut_width,
                height: cut_height,
            };
        }
    }
    let part = |length: f64| (length.round_ties_even() as usize).max(1);
    let (cut_width, cut_height) = if w / h < RATIO.0 {
        (width, part(w / RATIO.0))
    } else if w / h > RATIO.1 {
        (part(h * RATIO.1), height)
    } else {
        (width, height)
    };
    Window {
        left: (width - cut_width) / 2,
        top: (height - cut_height) / 2,
        width: cut_width,
        height: cut_height,
    }
}

/// The mean and the standard deviation of each colour, of values from 0 to 1, by which images are
/// centred and scaled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// The mean of red, green and blue.
    pub mean: [f32; 3],
    /// Their standard deviation.
    pub std: [f32; 3],
}

impl Normalization {
    /// The statistics of ImageNet that torchvision's models use, also for street scenes.
    pub const IMAGENET: Self = Self {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };
    /// For CIFAR-10 as in the original MDEQ and many other programs, so that their checkpoints find
    /// what they were trained on: the mean of the 50,000 training images, and the mean over images
    /// of each one's standard deviation; that of all pixels together is (0.2470, 0.2435, 0.2616).
    pub const CIFAR10: Self = Self {
        mean: [0.4914, 0.4822, 0.4465],
        std: [0.2023, 0.1994, 0.2010],
    };
    /// For [`Shapes`](crate::Shapes): colours are drawn evenly, so the middle of the range and
    /// about their deviation.
    pub const SHAPES: Self = Self {
        mean: [0.5; 3],
        std: [0.25; 3],
    };

    /// Writes an image as normalised planes, `[3, height, width]`.
    ///
    /// # Panics
    ///
    /// If `planes` has another length.
    pub fn write(&self, picture: &Picture, planes: &mut [f32]) {
        let pixels = picture.width() * picture.height();
        assert_eq!(
            planes.len(),
            3 * pixels,
            "three planes of the picture's size"
        );
        for (channel, plane) in planes.chunks_exact_mut(pixels).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            // One division per value that a byte can have, not per pixel.
            let table: [f32; 256] = std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std);
            let bytes = picture.data().iter().skip(channel).step_by(3);
            for (value, byte) in plane.iter_mut().zip(bytes) {
                *value = table[usize::from(*byte)];
            }
        }
    }
}

#[cfg(test)]
mod tests;
