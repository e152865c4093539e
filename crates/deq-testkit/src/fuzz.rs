//! Samples of files, damaged at random.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// Numbers that ask for all memory, wrap around or divide by zero.
const EXTREME: [u64; 8] = [
    0,
    1,
    0x7f,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 62,
    u64::MAX,
];
/// What texts, JSON and lists are made of.
const WORDS: [&str; 16] = [
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "NaN",
    "null",
    "true",
    "\"",
    "{",
    "}",
    "[[[[",
    "\\u",
    "\n",
    "\r",
    "\u{feff}",
    ": ",
];

/// Hands damaged samples to `read`, which must answer or refuse, and never panic: `tries` of them,
/// the same every time.
///
/// With minutes in `DEQ_FUZZ_MINUTES` it goes on for as long and says how many there were; with a
/// number in `DEQ_FUZZ_SEED` it begins there, as a panic says, so that its input comes first.
///
/// # Panics
///
/// If `read` does, or a sample itself is.
pub fn fuzz(name: &str, samples: &[Vec<u8>], tries: u64, mut read: impl FnMut(&[u8])) {
    let number = |variable| std::env::var(variable).ok()?.parse::<f64>().ok();
    let minutes = number("DEQ_FUZZ_MINUTES");
    let first = number("DEQ_FUZZ_SEED").map_or(0, |seed| seed as u64);
    let (started, mut done) = (Instant::now(), 0);
    let goes_on = |done: u64| match minutes {
        Some(minutes) => started.elapsed() < Duration::from_secs_f64(60.0 * minutes),
        None => done < tries,
    };
    while goes_on(done) {
        let input = damaged(samples, first + done);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| read(&input))) {
            eprintln!("{name}: the input of DEQ_FUZZ_SEED={} failed", first + done);
            resume_unwind(panic);
        }
        done += 1;
    }
    if let Some(minutes) = minutes {
        println!("fuzz: {name}: {done} inputs in {minutes} minutes from seed {first}, no failure");
    }
}

/// One of the samples with up to four changes, determined by the seed.
fn damaged(samples: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = samples[random.below(samples.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(32)).min(bytes.len());
        match random.below(9) {
            0 | 1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 => {
                let number = EXTREME[random.below(EXTREME.len())];
                let number = match random.below(2) {
                    0 => number.to_le_bytes(),
                    _ => number.to_be_bytes(),
                };
                // Of 1 to 8 bytes, from the end that counts.
                let width = 1 << random.below(4);
                let number = &number[(8 - width) * usize::from(number[0] == 0)..][..width];
                let width = width.min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => drop(bytes.drain(at..end)),
            5 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            6 => {
                let word = WORDS[random.below(WORDS.len())];
                let over = random.below(2) * (end - at);
                bytes.splice(at..at + over, word.bytes());
            }
            7 => {
                let other = &samples[random.below(samples.len())];
                let from = random.below(other.len() + 1);
                let part = &other[from..(from + 64).min(other.len())];
                bytes.splice(at..end, part.iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_input_and_most_inputs_differ() {
        let samples = [b"a sample of some bytes".to_vec(), vec![7; 300]];
        let inputs: Vec<_> = (0..500).map(|seed| damaged(&samples, seed)).collect();
        assert_eq!(inputs[123], damaged(&samples, 123));
        let distinct: std::collections::BTreeSet<_> = inputs.iter().collect();
        assert!(distinct.len() > 400, "{}", distinct.len());
    }
}
