//! Inverted dropout: out = x * keep / (1 - p). The mask is a function of (seed, element index) alone, so the backward and a resumed run see the same.
use super::pieces::{self, PIECE};
use super::vector_math::vectorised;
use super::{expect_shape, launch_each};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// out = mask(x); calling it on dy with the same p and seed is the backward. 0 <= p < 1.
pub fn forward(out: &mut Tensor, x: &Tensor, p: f32, seed: u64) -> Result<()> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::op("dropout", "0 <= p < 1", p.to_string()));
    }
    expect_shape("dropout", "out", out, x.shape())?;
    let threshold = (f64::from(p) * f64::from(u32::MAX)) as u32;
    let factor = (1.0 / (1.0 - f64::from(p))) as f32;
    if let Some(gpu) = x.gpu() {
        let first = 0u64;
        let last = [first.into(), seed.into(), u64::from(threshold).into(), factor.into()];
        return launch_each(gpu, "dropout", "forward", &mut [out], &[x], &last);
    }
    let x = x.f32s()?;
    pieces::each(out.f32s_mut()?, PIECE, |start, out| {
        // 2^32 is a multiple of a piece, so within one the high half of the index is constant and belongs to the key.
        let key = mix(seed ^ mix(start as u64 >> 32));
        mask(out, &x[start..start + out.len()], start as u32, key, threshold, factor);
    });
    Ok(())
}

vectorised! {
    fn mask(out: &mut [f32], x: &[f32], start: u32, key: u64, threshold: u32, factor: f32) {
        let (key, second_key) = (key as u32, (key >> 32) as u32);
        for (index, (out, &x)) in (start..).zip(out.iter_mut().zip(x)) {
            let drop = hash(index, key, second_key) < threshold;
            *out = if drop { 0.0 } else { x * factor };
        }
    }
}

/// Two rounds of multiply and xor-shift (constants of Wellons' search for low bias); the key enters before each, so that
/// masks of different seeds are not permutations of one another.
#[inline(always)]
fn hash(index: u32, key: u32, second_key: u32) -> u32 {
    let mut h = index ^ key;
    h = (h ^ (h >> 16)).wrapping_mul(0x21F0_AAAD);
    h = (h ^ (h >> 15)).wrapping_add(second_key).wrapping_mul(0x735A_2D97);
    h ^ (h >> 15)
}

/// The output function of SplitMix64: every bit of the seed reaches every bit of the key.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
