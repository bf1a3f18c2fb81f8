//! AVX2 and FMA: tiles of up to six rows and two vectors of eight columns, in sixteen registers.

use std::arch::x86_64::*;

use super::{Kernel, portable};

const LANES: usize = 8;

/// One vector or two, of one row to six.
macro_rules! tiles {
    ($tile:ident) => {
        [
            &[$tile::<1, 1>, $tile::<2, 1>, $tile::<3, 1>, $tile::<4, 1>, $tile::<5, 1>, $tile::<6, 1>],
            &[$tile::<1, 2>, $tile::<2, 2>, $tile::<3, 2>, $tile::<4, 2>, $tile::<5, 2>, $tile::<6, 2>],
        ]
    };
}

static F32: Kernel<f32> = Kernel { lanes: LANES, tiles: tiles!(tile_f32), pack: portable::pack, row: None };
static I16: Kernel<i32> = Kernel { lanes: LANES, tiles: tiles!(tile_i16), pack: portable::pack, row: None };

pub(super) fn f32() -> Option<&'static Kernel<f32>> {
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(&F32)
}

/// Of pairs of 16-bit integers, whose products and sums are exact.
pub(super) fn i16() -> Option<&'static Kernel<i32>> {
    is_x86_feature_detected!("avx2").then_some(&I16)
}

trait Op {
    /// # Safety
    /// The processor has the instructions.
    unsafe fn add(sum: __m256i, x: __m256i, w: __m256i) -> __m256i;
}

struct Fma;
struct Madd;

impl Op for Fma {
    #[inline(always)]
    unsafe fn add(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: by the contract.
        unsafe {
            let (sum, x, w) = (_mm256_castsi256_ps(sum), _mm256_castsi256_ps(x), _mm256_castsi256_ps(w));
            _mm256_castps_si256(_mm256_fmadd_ps(x, w, sum))
        }
    }
}

impl Op for Madd {
    #[inline(always)]
    unsafe fn add(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: by the contract.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)) }
    }
}

/// See `Tile`.
///
/// # Safety
/// AVX2 and FMA; the rest as of `tile`.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_f32<const R: usize, const C: usize>(
    sums: *mut f32,
    strip: *const u32,
    panel: *const u32,
    depth: usize,
    resume: bool,
) {
    // SAFETY: the caller's contract is the same.
    unsafe { tile::<Fma, R, C>(sums.cast(), strip, panel, depth, resume) }
}

/// See `Tile`.
///
/// # Safety
/// AVX2; the rest as of `tile`.
#[target_feature(enable = "avx2")]
unsafe fn tile_i16<const R: usize, const C: usize>(
    sums: *mut i32,
    strip: *const u32,
    panel: *const u32,
    depth: usize,
    resume: bool,
) {
    // SAFETY: the caller's contract is the same.
    unsafe { tile::<Madd, R, C>(sums.cast(), strip, panel, depth, resume) }
}

/// # Safety
/// `sums` is R x C vectors, `strip` depth x R dwords, `panel` depth x C vectors; nothing else touches `sums`.
#[inline(always)]
unsafe fn tile<O: Op, const R: usize, const C: usize>(
    sums: *mut __m256i,
    strip: *const u32,
    panel: *const u32,
    depth: usize,
    resume: bool,
) {
    // SAFETY: all pointers stay within what the contract names; vectors are loaded without regard to alignment.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); C]; R];
        if resume {
            for (i, acc) in acc.as_flattened_mut().iter_mut().enumerate() {
                *acc = _mm256_loadu_si256(sums.add(i));
            }
        }
        for d in 0..depth {
            let mut w = [_mm256_setzero_si256(); C];
            for (c, w) in w.iter_mut().enumerate() {
                *w = _mm256_loadu_si256(panel.cast::<__m256i>().add(d * C + c));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_epi32(*strip.add(d * R + r) as i32);
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = O::add(*acc, x, w);
                }
            }
        }
        for (i, &acc) in acc.as_flattened().iter().enumerate() {
            _mm256_storeu_si256(sums.add(i), acc);
        }
    }
}
