//! AVX-512: tiles of up to fourteen rows and two vectors of sixteen columns, in 32 registers; f32, pairs of bf16 (AVX-512 BF16), bytes (VNNI).

use std::arch::x86_64::*;

use super::{Bytes, GROUP, Kernel};

const LANES: usize = 16;

/// One vector or two, of one row to fourteen.
macro_rules! tiles {
    ($tile:ident) => {
        [tiles!($tile, 1), tiles!($tile, 2)]
    };
    ($tile:ident, $c:literal) => {
        &[
            $tile::<1, $c>,
            $tile::<2, $c>,
            $tile::<3, $c>,
            $tile::<4, $c>,
            $tile::<5, $c>,
            $tile::<6, $c>,
            $tile::<7, $c>,
            $tile::<8, $c>,
            $tile::<9, $c>,
            $tile::<10, $c>,
            $tile::<11, $c>,
            $tile::<12, $c>,
            $tile::<13, $c>,
            $tile::<14, $c>,
        ]
    };
}

static F32: Kernel<f32> =
    Kernel { lanes: LANES, tiles: tiles!(tile_f32), pack, row: Some(row_f32), half: None };
static BF16: Kernel<f32> =
    Kernel { lanes: LANES, tiles: tiles!(tile_bf16), pack, row: Some(row_bf16), half: None };
static INT8: Kernel<i32> =
    Kernel { lanes: LANES, tiles: tiles!(tile_int8), pack, row: Some(row_int8), half: None };

fn basic() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

pub(super) fn f32() -> Option<&'static Kernel<f32>> {
    basic().then_some(&F32)
}

/// Of pairs of bf16.
pub(super) fn bf16() -> Option<&'static Kernel<f32>> {
    (basic() && is_x86_feature_detected!("avx512bf16")).then_some(&BF16)
}

/// Of bytes, four to a dword: x signed, W unsigned.
pub(super) fn int8() -> Option<&'static Kernel<i32>> {
    (basic() && is_x86_feature_detected!("avx512vnni")).then_some(&INT8)
}

trait Op {
    /// # Safety
    /// The processor has the instructions.
    unsafe fn add(sum: __m512i, x: __m512i, w: __m512i) -> __m512i;
}

struct Fma;
struct Bf16;
struct Int8;

impl Op for Fma {
    #[inline(always)]
    unsafe fn add(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: by the contract.
        unsafe {
            let (sum, x, w) = (_mm512_castsi512_ps(sum), _mm512_castsi512_ps(x), _mm512_castsi512_ps(w));
            _mm512_castps_si512(_mm512_fmadd_ps(x, w, sum))
        }
    }
}

impl Op for Bf16 {
    #[inline(always)]
    unsafe fn add(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: by the contract; the types are bits of one size.
        unsafe {
            let (x, w) =
                (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w));
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), x, w))
        }
    }
}

impl Op for Int8 {
    #[inline(always)]
    unsafe fn add(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }
}

/// See `Tile`.
///
/// # Safety
/// AVX-512 F; the rest as of `tile`.
#[target_feature(enable = "avx512f")]
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
/// AVX-512 F and BF16; the rest as of `tile`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_bf16<const R: usize, const C: usize>(
    sums: *mut f32,
    strip: *const u32,
    panel: *const u32,
    depth: usize,
    resume: bool,
) {
    // SAFETY: the caller's contract is the same.
    unsafe { tile::<Bf16, R, C>(sums.cast(), strip, panel, depth, resume) }
}

/// See `Tile`.
///
/// # Safety
/// AVX-512 F and VNNI; the rest as of `tile`.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile_int8<const R: usize, const C: usize>(
    sums: *mut i32,
    strip: *const u32,
    panel: *const u32,
    depth: usize,
    resume: bool,
) {
    // SAFETY: the caller's contract is the same.
    unsafe { tile::<Int8, R, C>(sums.cast(), strip, panel, depth, resume) }
}

/// # Safety
/// `sums` is R x C vectors, `strip` depth x R dwords, `panel` depth x C vectors; nothing else touches `sums`.
#[inline(always)]
unsafe fn tile<O: Op, const R: usize, const C: usize>(
    sums: *mut __m512i,
    strip: *const u32,
    panel: *const u32,
    depth: usize,
    resume: bool,
) {
    // SAFETY: all pointers stay within what the contract names; vectors are loaded without regard to alignment.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); C]; R];
        if resume {
            for (i, acc) in acc.as_flattened_mut().iter_mut().enumerate() {
                *acc = _mm512_loadu_si512(sums.add(i));
            }
        }
        for d in 0..depth {
            let mut w = [_mm512_setzero_si512(); C];
            for (c, w) in w.iter_mut().enumerate() {
                *w = _mm512_loadu_si512(panel.cast::<__m512i>().add(d * C + c));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*strip.add(d * R + r) as i32);
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = O::add(*acc, x, w);
                }
            }
        }
        for (i, &acc) in acc.as_flattened().iter().enumerate() {
            _mm512_storeu_si512(sums.add(i), acc);
        }
    }
}

/// See `Row`.
///
/// # Safety
/// AVX-512 F and BW; the rest as of `row`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn row_f32(sums: *mut f32, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    // SAFETY: the caller's contract is the same.
    unsafe { row::<Fma>(sums.cast(), x, w, rows, bytes) }
}

/// See `Row`.
///
/// # Safety
/// AVX-512 F, BW and BF16; the rest as of `row`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn row_bf16(sums: *mut f32, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    // SAFETY: the caller's contract is the same.
    unsafe { row::<Bf16>(sums.cast(), x, w, rows, bytes) }
}

/// What `tile` makes of one row, in the same order, from W as it lies: a block of sixteen by sixteen dwords goes from the registers that exchanged it
/// straight into the sums.
///
/// # Safety
/// AVX-512 F and BW. `sums` is a vector, `x` as many dwords as cover `bytes`, `w` as `pack` takes it; nothing else touches `sums`.
#[inline(always)]
unsafe fn row<O: Op>(sums: *mut __m512i, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    // SAFETY: by the contract.
    let mut acc = unsafe { _mm512_setzero_si512() };
    let whole = if rows == GROUP { bytes / 64 * 64 } else { 0 };
    for start in (0..whole).step_by(64) {
        // SAFETY: the blocks lie within `bytes` of the rows, and their dwords within x.
        unsafe {
            let block = transpose(load_whole(w, start));
            for (i, &column) in block.iter().enumerate() {
                acc = O::add(acc, _mm512_set1_epi32(*x.add(start / 4 + i) as i32), column);
            }
        }
    }
    for start in (whole..bytes).step_by(64) {
        let n = 64.min(bytes - start);
        // SAFETY: as above; a block ends where the bytes do.
        unsafe {
            let block = transpose(load(w, rows, start, n));
            for (i, &column) in block.iter().enumerate().take(n.div_ceil(4)) {
                acc = O::add(acc, _mm512_set1_epi32(*x.add(start / 4 + i) as i32), column);
            }
        }
    }
    // SAFETY: by the contract.
    unsafe { _mm512_storeu_si512(sums, acc) };
}

/// See `Row`: sums of products of bytes are exact, in whatever order, so that W is read row by row.
///
/// # Safety
/// AVX-512 F, BW and VNNI; `sums` is a vector, `x` as many dwords as cover `bytes`, `w` as `pack` takes it; nothing else touches `sums`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn row_int8(sums: *mut i32, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    /// Rows at a time.
    const SOME: usize = 4;
    let flip = _mm512_set1_epi8(-128);
    for first in (0..rows).step_by(SOME) {
        let mut acc = [_mm512_setzero_si512(); SOME];
        for start in (0..bytes).step_by(64) {
            let mask = !0u64 >> (64 - 64.min(bytes - start));
            // SAFETY: masked loads read the `bytes` of x and of the rows alone. Beyond the last row that row is read again, and its sum dropped.
            unsafe {
                let x = _mm512_maskz_loadu_epi8(mask, x.cast::<i8>().add(start));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let at = w.data.add((first + r).min(rows - 1) * w.row_bytes + start);
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD).cast());
                    let w = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, at.cast()), flip);
                    *acc = _mm512_dpbusd_epi32(*acc, w, x);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate().take(rows - first) {
            // SAFETY: row first + r < rows, at most a vector of them.
            unsafe { *sums.add(first + r) = _mm512_reduce_add_epi32(acc) };
        }
    }
}

/// Bytes that are asked for before they are read.
const AHEAD: usize = 8192;

/// Pairs of bf16, the first in the low half; beyond the end of x there are zeros. To nearest, ties to even, as the rounding in `float` but for subnormal
/// numbers, which become the zeros that products take them for.
///
/// # Safety
/// AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round_pairs(to: &mut [u32], x: &[f32]) {
    let pairs = to.len().min(x.len().div_ceil(2));
    for start in (0..pairs).step_by(LANES / 2) {
        let (n, left) = ((pairs - start).min(LANES / 2), (x.len() - 2 * start).min(LANES));
        let (from, into) = (&x[2 * start..], &mut to[start..]);
        // SAFETY: masked loads and stores touch the `left` numbers of x and the `n` pairs alone; the types are bits of one size.
        unsafe {
            let x = _mm512_maskz_loadu_ps(((1u32 << left) - 1) as __mmask16, from.as_ptr());
            let pairs = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
            _mm512_mask_storeu_epi32(
                into.as_mut_ptr().cast(),
                ((1u32 << n) - 1) as __mmask16,
                _mm512_castsi256_si512(pairs),
            );
        }
    }
}

/// See `Pack`.
///
/// # Safety
/// AVX-512 F and BW. All that is read and written is there, and nothing else touches what is written.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack(to: *mut u32, stride: usize, from: Bytes, rows: usize, bytes: usize, flip: u32) {
    let flip = _mm512_set1_epi32(flip as i32);
    let lanes = ((1u32 << rows) - 1) as __mmask16;
    let last = bytes.div_ceil(4) - 1;
    for start in (0..bytes).step_by(64) {
        let n = 64.min(bytes - start);
        // SAFETY: `n` bytes of the rows from `start` on, by the contract.
        let block = transpose(unsafe { load(from, rows, start, n) });
        for (i, &dwords) in block.iter().enumerate().take(n.div_ceil(4)) {
            let d = start / 4 + i;
            let dwords = _mm512_xor_si512(dwords, flip);
            // SAFETY: `rows` dwords of row d, by the contract. A store of a whole vector stays within the row, or goes on to the next ones, which are written
            // afterwards; a masked one writes no others.
            unsafe {
                let at = to.add(d * stride);
                if stride >= GROUP || d + GROUP <= last {
                    _mm512_storeu_si512(at.cast(), dwords);
                } else {
                    _mm512_mask_storeu_epi32(at.cast(), lanes, dwords);
                }
            }
        }
    }
}

/// `n` bytes, at most 64, of each of `rows` rows from byte `start` on; the rest is zeros.
///
/// # Safety
/// The bytes are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load(from: Bytes, rows: usize, start: usize, n: usize) -> [__m512i; GROUP] {
    if (rows, n) == (GROUP, 64) {
        // SAFETY: by the contract.
        return unsafe { load_whole(from, start) };
    }
    let mask = !0u64 >> (64 - n);
    let mut block = [_mm512_setzero_si512(); GROUP];
    for (row, to) in block.iter_mut().enumerate().take(rows) {
        // SAFETY: by the contract; a masked load reads no others.
        *to = unsafe { _mm512_maskz_loadu_epi8(mask, from.data.add(row * from.row_bytes + start).cast()) };
    }
    block
}

/// The same of a whole block, and the next panel's is asked for.
///
/// # Safety
/// GROUP rows have 64 bytes from `start` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_whole(from: Bytes, start: usize) -> [__m512i; GROUP] {
    let mut block = [_mm512_setzero_si512(); GROUP];
    for (row, to) in block.iter_mut().enumerate() {
        let at = from.data.wrapping_add(row * from.row_bytes + start);
        // Two groups on; a prefetch beyond the end does no harm.
        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(2 * GROUP * from.row_bytes).cast());
        // SAFETY: by the contract.
        *to = unsafe { _mm512_loadu_si512(at.cast()) };
    }
    block
}

/// Of sixteen by sixteen dwords: by pairs, by fours, and then 128 bits at a time.
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let (mut twos, mut fours, mut out) = (rows, rows, rows);
    for i in 0..8 {
        twos[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        twos[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        let [a, b, c, d] = [twos[4 * i], twos[4 * i + 1], twos[4 * i + 2], twos[4 * i + 3]];
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Quarter q of fours[4 g + j] has column 4 q + j of rows 4 g to 4 g + 3.
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (even2, odd2) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        out[j] = _mm512_shuffle_i32x4::<0x88>(even, even2);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd2);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even, even2);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd, odd2);
    }
    out
}
