//! Random numbers as pure functions of a seed and a counter, so that a resumed run repeats the
//! draws of an uninterrupted one; and draws of a device for a batch that several devices share.

use burn::tensor::{Device, Distribution, Tensor, TensorCreationOptions};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A number of `[0, 1)`, uniform over `counter` for a fixed `seed`.
pub fn uniform(seed: u64, counter: u64) -> f64 {
    let bits = mix(mix(seed) ^ counter);
    // The upper 53 bits are the mantissa of an f64.
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A vector of standard normal numbers, by the Box-Muller transform.
pub fn normal(seed: u64, len: usize) -> Vec<f64> {
    (0..len as u64)
        .map(|index| {
            // 1 - u is never 0.
            let radius = (-2.0 * (1.0 - uniform(seed, 2 * index)).ln()).sqrt();
            radius * (core::f64::consts::TAU * uniform(seed, 2 * index + 1)).cos()
        })
        .collect()
}

/// Random numbers for the samples of a batch, on a plain device, from its generator. Of a part of a
/// batch that is [divided](DividedDraws) they are its rows of what is drawn for the whole.
///
/// # Shapes
///
/// - shape, output: `[batch, ..]`
///
/// # Panics
///
/// If within a division the first axis is not the samples of the part.
pub fn for_samples<const D: usize>(
    shape: [usize; D],
    distribution: Distribution,
    options: impl Into<TensorCreationOptions>,
) -> Tensor<D> {
    draw(shape, distribution, options.into(), true)
}

/// Random numbers that all samples share, on a plain device, from its generator; the same for all
/// parts of a batch that is [divided](DividedDraws).
pub fn for_all<const D: usize>(
    shape: [usize; D],
    distribution: Distribution,
    options: impl Into<TensorCreationOptions>,
) -> Tensor<D> {
    draw(shape, distribution, options.into(), false)
}

fn draw<const D: usize>(
    shape: [usize; D],
    distribution: Distribution,
    options: TensorCreationOptions,
    by_sample: bool,
) -> Tensor<D> {
    PART.with_borrow_mut(|part| match part {
        Some(part) => part.draw(shape, distribution, options, by_sample),
        None => Tensor::random(shape, distribution, options),
    })
}

/// What one device draws for a batch, for parts of the batch on any devices.
///
/// The parts make the same draws in the same order. Whoever is first makes a draw, for the whole
/// batch and on the one device, so that the numbers do not depend on the division.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use deq_core::random::{DividedDraws, for_samples};
///
/// let device = Device::flex();
/// let draw = |rows: usize| for_samples([rows, 2], Distribution::Default, &device);
/// device.seed(1);
/// let whole: Tensor<2> = draw(3);
/// device.seed(1);
/// let draws = DividedDraws::new(3, 2, &device);
/// let parts = [0..1, 1..3].map(|rows| draws.within(rows.clone(), || draw(rows.len())));
/// assert_eq!(Tensor::cat(parts.to_vec(), 0).into_data(), whole.into_data());
/// ```
#[derive(Clone, Debug)]
pub struct DividedDraws(Arc<Draws>);

#[derive(Debug)]
struct Draws {
    samples: usize,
    parts: usize,
    device: Device,
    made: Mutex<Vec<Made>>,
}

/// One draw for the whole batch, `[batch or 1, rest]`, until every part has its rows.
#[derive(Debug)]
struct Made {
    tensor: Option<Tensor<2>>,
    takers: usize,
}

/// The part of the batch that the work of this thread is for.
struct Part {
    draws: Arc<Draws>,
    rows: Range<usize>,
    /// Draws made so far.
    asked: usize,
}

thread_local! {
    static PART: RefCell<Option<Part>> = const { RefCell::new(None) };
}

impl DividedDraws {
    /// The draws of `device` for a batch of so many samples in so many parts.
    pub fn new(samples: usize, parts: usize, device: &Device) -> Self {
        Self(Arc::new(Draws {
            samples,
            parts,
            device: device.clone(),
            made: Mutex::new(Vec::new()),
        }))
    }

    /// Does the work for the samples `rows`: what this thread draws by [`for_samples`] and
    /// [`for_all`] in the meantime comes from here.
    pub fn within<R>(&self, rows: Range<usize>, work: impl FnOnce() -> R) -> R {
        /// Puts back what was there before, also where the work panics.
        struct Restore(Option<Part>);
        impl Drop for Restore {
            fn drop(&mut self) {
                PART.set(self.0.take());
            }
        }
        let part = Part {
            draws: self.0.clone(),
            rows,
            asked: 0,
        };
        let _restore = Restore(PART.replace(Some(part)));
        work()
    }
}

impl Part {
    fn draw<const D: usize>(
        &mut self,
        shape: [usize; D],
        distribution: Distribution,
        options: TensorCreationOptions,
        by_sample: bool,
    ) -> Tensor<D> {
        let mut whole = shape;
        if by_sample {
            let samples = self.rows.len();
            assert_eq!(
                shape[0], samples,
                "what is drawn for each sample has the samples as its first axis: {shape:?}"
            );
            whole[0] = self.draws.samples;
        }
        let drawn = self.draws.take(self.asked, || {
            let here = options.clone().with_device(self.draws.device.clone());
            let rest = whole[1..].iter().product();
            Tensor::<D>::random(whole, distribution, here).reshape([whole[0], rest])
        });
        self.asked += 1;
        let rows = match by_sample {
            true => drawn.narrow(0, self.rows.start, self.rows.len()),
            false => drawn,
        };
        rows.to_device(&options.device).reshape(shape)
    }
}

impl Draws {
    /// The draw of that number, which is made where nobody has asked for it before.
    fn take(&self, number: usize, make: impl FnOnce() -> Tensor<2>) -> Tensor<2> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if number == made.len() {
            made.push(Made {
                tensor: Some(make()),
                takers: self.parts,
            });
        }
        let made = &mut made[number];
        made.takers -= 1;
        let tensor = match made.takers {
            0 => made.tensor.take(),
            _ => made.tensor.clone(),
        };
        tensor.expect("every part takes a draw once")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: Distribution = Distribution::Normal(0.0, 1.0);

    /// Two draws for each sample around one for all.
    fn three(samples: usize, device: &Device) -> [Tensor<2>; 3] {
        [
            for_samples([samples, 3], NORMAL, device),
            for_all([1, 2], NORMAL, device),
            for_samples([samples, 1, 2], NORMAL, device).squeeze_dim(1),
        ]
    }

    #[test]
    fn parts_draw_what_one_device_draws_in_whatever_order_they_run() {
        let device = Device::flex();
        device.seed(5);
        let whole = three(4, &device);
        for order in [[0, 1, 2], [2, 0, 1]] {
            let draws = DividedDraws::new(4, 3, &device);
            let rows = [0..1, 1..2, 2..4];
            device.seed(5);
            let mut parts: [Option<[Tensor<2>; 3]>; 3] = Default::default();
            for part in order {
                let rows = rows[part].clone();
                parts[part] = Some(draws.within(rows.clone(), || three(rows.len(), &device)));
            }
            let parts = parts.map(Option::unwrap);
            for (draw, whole) in whole.iter().enumerate() {
                let own = parts.iter().map(|part| part[draw].clone());
                let found = match draw {
                    1 => parts[2][1].clone(),
                    _ => Tensor::cat(own.collect(), 0),
                };
                assert_eq!(found.into_data(), whole.clone().into_data());
            }
            let made = draws.0.made.lock().unwrap();
            assert!(made.iter().all(|made| made.tensor.is_none()), "kept");
        }
        // Outside of a part, draws are the device's again.
        device.seed(5);
        let again = three(4, &device);
        assert_eq!(again[0].to_data(), whole[0].to_data());
    }

    #[test]
    #[should_panic(expected = "has the samples as its first axis")]
    fn what_is_no_draw_by_sample_is_told() {
        let device = Device::flex();
        let draws = DividedDraws::new(4, 2, &device);
        let _: Tensor<2> = draws.within(0..2, || for_samples([1, 3], NORMAL, &device));
    }
}
