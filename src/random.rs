//! Reproducible randomness: every use has a stream of its own, named by a seed and a few numbers, so nothing has to be saved to resume.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The stream named by `seed` and `keys`.
pub fn stream(seed: u64, keys: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(mix(seed, keys))
}

/// A well-spread hash of `seed` and `keys`: SplitMix64's finaliser over a running state.
pub fn mix(seed: u64, keys: &[u64]) -> u64 {
    keys.iter().fold(finalise(seed), |state, &key| finalise(state ^ finalise(key)))
}

/// A hash of text, for keys that are names (FNV-1a, then mixed).
pub fn hash(text: &str) -> u64 {
    hash_bytes(text.as_bytes())
}

pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let add = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    finalise(bytes.iter().fold(0xcbf2_9ce4_8422_2325, add))
}

/// Uniform in [0, 1), 53 bits.
pub fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform in 0 .. n; 0 for n = 0.
pub fn below(rng: &mut impl Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Standard normal (Box-Muller).
pub fn normal(rng: &mut impl Rng) -> f64 {
    let (u, v) = (1.0 - uniform(rng), uniform(rng));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Fisher-Yates.
pub fn shuffle<T>(rng: &mut impl Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}

fn finalise(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
