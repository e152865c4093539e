//! Random numbers that depend on seed, epoch and index alone, so that no order of work changes
//! them.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// What a generator is for; each has its own numbers.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Order,
    Augmentation,
    Shape,
}

/// The generator for one purpose, epoch and index. ChaCha8 gives the same numbers on every machine.
pub(super) fn generator(seed: u64, stream: Stream, epoch: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, number) in key
        .chunks_exact_mut(8)
        .zip([seed, stream as u64, epoch, index])
    {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A number from `low` to `high`, which may be equal.
pub(super) fn uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// A permutation of `0..len`.
pub(super) fn permutation(seed: u64, epoch: u64, len: usize) -> Vec<u32> {
    use rand::seq::SliceRandom;
    let mut order: Vec<u32> = (0..u32::try_from(len).expect("fewer than 2^32 images")).collect();
    order.shuffle(&mut generator(seed, Stream::Order, epoch, 0));
    order
}
