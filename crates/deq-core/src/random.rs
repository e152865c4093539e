//! Random numbers as pure functions of a seed and a counter, so that a resumed run repeats the
//! draws of an uninterrupted one.

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
