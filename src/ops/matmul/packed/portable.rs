//! What any processor can do; the compiler makes vectors of it as far as it can.

use super::{Bytes, Kernel};

const LANES: usize = 8;

/// One vector or two, of one row to four.
macro_rules! tiles {
    ($tile:ident, $op:ty) => {
        [
            &[$tile::<$op, 1, 1>, $tile::<$op, 2, 1>, $tile::<$op, 3, 1>, $tile::<$op, 4, 1>],
            &[$tile::<$op, 1, 2>, $tile::<$op, 2, 2>, $tile::<$op, 3, 2>, $tile::<$op, 4, 2>],
        ]
    };
}

pub(super) static F32: Kernel<f32> =
    Kernel { lanes: LANES, tiles: tiles!(tile, Floats), pack, row: None, half: None };
/// Of pairs of 16-bit integers.
pub(super) static I16: Kernel<i32> =
    Kernel { lanes: LANES, tiles: tiles!(tile, Pairs), pack, row: None, half: None };

trait Op {
    type Sum: Copy + Default;
    fn add(sum: Self::Sum, x: u32, w: u32) -> Self::Sum;
}

struct Floats;
struct Pairs;

impl Op for Floats {
    type Sum = f32;
    #[inline(always)]
    fn add(sum: f32, x: u32, w: u32) -> f32 {
        let (x, w) = (f32::from_bits(x), f32::from_bits(w));
        // Where there is no instruction for it, a fused addition is slow.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            x.mul_add(w, sum)
        } else {
            sum + x * w
        }
    }
}

impl Op for Pairs {
    type Sum = i32;
    #[inline(always)]
    fn add(sum: i32, x: u32, w: u32) -> i32 {
        let halves = |v: u32| (i32::from(v as i16), (v as i32) >> 16);
        let (x, w) = (halves(x), halves(w));
        sum.wrapping_add(x.0 * w.0).wrapping_add(x.1 * w.1)
    }
}

/// See `Tile`.
///
/// # Safety
/// `sums` is R x C vectors, `strip` depth x R dwords, `panel` depth x C vectors; nothing else touches `sums`.
unsafe fn tile<O: Op, const R: usize, const C: usize>(
    sums: *mut O::Sum,
    strip: *const u32,
    panel: *const u32,
    depth: usize,
    resume: bool,
) {
    let mut acc = [[[O::Sum::default(); LANES]; C]; R];
    let at = sums.cast::<[[[O::Sum; LANES]; C]; R]>();
    if resume {
        // SAFETY: `sums` has that many elements.
        acc = unsafe { *at };
    }
    for d in 0..depth {
        // SAFETY: d < depth.
        let (x, w) = unsafe { (*strip.cast::<[u32; R]>().add(d), *panel.cast::<[[u32; LANES]; C]>().add(d)) };
        for (acc, x) in acc.iter_mut().zip(x) {
            for (acc, w) in acc.as_flattened_mut().iter_mut().zip(w.as_flattened()) {
                *acc = O::add(*acc, x, *w);
            }
        }
    }
    // SAFETY: as above.
    unsafe { *at = acc };
}

/// See `Pack`.
///
/// # Safety
/// All that is read and written is there, and nothing else touches what is written.
pub(super) unsafe fn pack(to: *mut u32, stride: usize, from: Bytes, rows: usize, bytes: usize, flip: u32) {
    for row in 0..rows {
        // SAFETY: by the contract.
        let data = unsafe { std::slice::from_raw_parts(from.data.add(row * from.row_bytes), bytes) };
        let (whole, rest) = data.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let last = (!rest.is_empty()).then_some(&last);
        for (d, dword) in whole.iter().chain(last).enumerate() {
            // SAFETY: by the contract.
            unsafe { *to.add(d * stride + row) = u32::from_ne_bytes(*dword) ^ flip };
        }
    }
}
