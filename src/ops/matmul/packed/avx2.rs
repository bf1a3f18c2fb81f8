//! AVX2 and FMA: tiles of up to six rows and two vectors of eight columns, in sixteen registers; f32, to which bf16 are widened on their way into a panel or
//! a sum, and pairs of 16-bit integers, which bytes become there.

use std::arch::x86_64::*;

use super::{Bytes, GROUP, Half, Kernel};

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

static F32: Kernel<f32> = Kernel {
    lanes: LANES,
    tiles: tiles!(tile_f32),
    pack: pack_dwords,
    row: Some(row_f32),
    half: Some(Half { pack: pack_bf16, row: row_bf16 }),
};
static I16: Kernel<i32> = Kernel {
    lanes: LANES,
    tiles: tiles!(tile_i16),
    pack: pack_dwords,
    row: None,
    half: Some(Half { pack: pack_int8, row: row_int8 }),
};

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

/// What the bytes of a row become: dwords.
trait Form {
    /// Bytes of a dword.
    const DWORD: usize;

    /// What each four bytes of a vector become: one dword, or two, those of the first two bytes and those of the others.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn dwords(fours: __m256i) -> [__m256i; 2];
}

struct Dwords;
struct Bf16;
struct Int8;

impl Form for Dwords {
    const DWORD: usize = 4;

    #[inline(always)]
    unsafe fn dwords(fours: __m256i) -> [__m256i; 2] {
        [fours; 2]
    }
}

impl Form for Bf16 {
    const DWORD: usize = 2;

    /// A bf16 is the upper half of an f32.
    #[inline(always)]
    unsafe fn dwords(fours: __m256i) -> [__m256i; 2] {
        // SAFETY: by the contract.
        unsafe {
            let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
            [_mm256_slli_epi32::<16>(fours), _mm256_and_si256(fours, upper)]
        }
    }
}

impl Form for Int8 {
    const DWORD: usize = 2;

    /// A byte goes into the upper half of its 16 bits, and comes down with its sign.
    #[inline(always)]
    unsafe fn dwords(fours: __m256i) -> [__m256i; 2] {
        // SAFETY: by the contract.
        unsafe {
            let step = _mm256_setr_epi32(
                0,
                0x0404_0404,
                0x0808_0808,
                0x0c0c_0c0c,
                0,
                0x0404_0404,
                0x0808_0808,
                0x0c0c_0c0c,
            );
            let first = _mm256_add_epi32(step, _mm256_set1_epi32(0x0180_0080));
            let second = _mm256_add_epi32(step, _mm256_set1_epi32(0x0380_0280));
            [
                _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(fours, first)),
                _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(fours, second)),
            ]
        }
    }
}

/// Bytes of a cache line, and those that are asked for before they are read.
const LINE: usize = 64;
const AHEAD: usize = 8192;

/// Bytes of a vector.
const WHOLE: usize = 32;

/// `n` bytes, at most a vector; the rest is zeros.
///
/// # Safety
/// AVX2; the bytes are there.
#[inline(always)]
unsafe fn load(from: *const u8, n: usize) -> __m256i {
    let mut some = [0; WHOLE];
    // SAFETY: by the contract; there is room for a vector.
    unsafe {
        if n == WHOLE {
            return _mm256_loadu_si256(from.cast());
        }
        some.as_mut_ptr().copy_from_nonoverlapping(from, n);
        _mm256_loadu_si256(some.as_ptr().cast())
    }
}

/// `n` bytes, at most a vector, of each of `rows` rows from byte `start` on, four by four and by column; what is missing of eight by eight is zeros.
///
/// # Safety
/// AVX2; the bytes are there.
#[inline(always)]
unsafe fn block(from: Bytes, rows: usize, start: usize, n: usize) -> [__m256i; LANES] {
    // SAFETY: by the contract.
    unsafe {
        let mut block = [_mm256_setzero_si256(); LANES];
        if (rows, n) == (LANES, WHOLE) {
            for (row, to) in block.iter_mut().enumerate() {
                *to = _mm256_loadu_si256(from.data.add(row * from.row_bytes + start).cast());
            }
        } else {
            for (row, to) in block.iter_mut().enumerate().take(rows) {
                *to = load(from.data.add(row * from.row_bytes + start), n);
            }
        }
        transpose(block)
    }
}

/// Of eight by eight dwords: by pairs, by fours, and then the halves of the registers.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn transpose(rows: [__m256i; LANES]) -> [__m256i; LANES] {
    // SAFETY: by the contract.
    unsafe {
        let (mut twos, mut fours, mut out) = (rows, rows, rows);
        for i in 0..4 {
            twos[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            twos[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        for i in 0..2 {
            let [a, b, c, d] = [twos[4 * i], twos[4 * i + 1], twos[4 * i + 2], twos[4 * i + 3]];
            fours[4 * i] = _mm256_unpacklo_epi64(a, c);
            fours[4 * i + 1] = _mm256_unpackhi_epi64(a, c);
            fours[4 * i + 2] = _mm256_unpacklo_epi64(b, d);
            fours[4 * i + 3] = _mm256_unpackhi_epi64(b, d);
        }
        // Half h of fours[4 g + j] has column 4 h + j of rows 4 g to 4 g + 3.
        for j in 0..4 {
            out[j] = _mm256_permute2x128_si256::<0x20>(fours[j], fours[4 + j]);
            out[4 + j] = _mm256_permute2x128_si256::<0x31>(fours[j], fours[4 + j]);
        }
        out
    }
}

/// # Safety
/// AVX2; the rest as of `Pack`.
#[inline(always)]
unsafe fn pack<F: Form>(to: *mut u32, stride: usize, from: Bytes, rows: usize, bytes: usize, flip: u32) {
    // SAFETY: the blocks lie within `bytes` of the rows. A store of a whole vector stays within the row, or goes on to the next ones, which are written
    // afterwards; a masked one writes no others.
    unsafe {
        let flip = _mm256_set1_epi32(flip as i32);
        let lanes =
            _mm256_cmpgt_epi32(_mm256_set1_epi32(rows as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        let last = bytes.div_ceil(F::DWORD) - 1;
        for start in (0..bytes).step_by(WHOLE) {
            if start.is_multiple_of(LINE) {
                // Two groups on; a prefetch beyond the end does no harm.
                for row in 2 * LANES..2 * LANES + rows {
                    _mm_prefetch::<_MM_HINT_T1>(from.data.wrapping_add(row * from.row_bytes + start).cast());
                }
            }
            let block = block(from, rows, start, (bytes - start).min(WHOLE));
            for (i, &fours) in block.iter().enumerate() {
                for (j, &dwords) in F::dwords(fours).iter().enumerate().take(4 / F::DWORD) {
                    let (d, dwords) = ((start / 4 + i) * 4 / F::DWORD + j, _mm256_xor_si256(dwords, flip));
                    if d > last {
                        return;
                    }
                    let at = to.add(d * stride);
                    if stride >= LANES || d + LANES <= last {
                        _mm256_storeu_si256(at.cast(), dwords);
                    } else {
                        _mm256_maskstore_epi32(at.cast(), lanes, dwords);
                    }
                }
            }
        }
    }
}

/// See `Pack`.
///
/// # Safety
/// AVX2; the rest as of `Pack`.
#[target_feature(enable = "avx2")]
unsafe fn pack_dwords(to: *mut u32, stride: usize, from: Bytes, rows: usize, bytes: usize, flip: u32) {
    // SAFETY: the caller's contract is the same.
    unsafe { pack::<Dwords>(to, stride, from, rows, bytes, flip) }
}

/// The same of bf16, which become f32.
///
/// # Safety
/// AVX2; the rest as of `Pack`.
#[target_feature(enable = "avx2")]
unsafe fn pack_bf16(to: *mut u32, stride: usize, from: Bytes, rows: usize, bytes: usize, flip: u32) {
    // SAFETY: the caller's contract is the same.
    unsafe { pack::<Bf16>(to, stride, from, rows, bytes, flip) }
}

/// The same of bytes, two of which become two 16-bit integers.
///
/// # Safety
/// AVX2; the rest as of `Pack`.
#[target_feature(enable = "avx2")]
unsafe fn pack_int8(to: *mut u32, stride: usize, from: Bytes, rows: usize, bytes: usize, flip: u32) {
    // SAFETY: the caller's contract is the same.
    unsafe { pack::<Int8>(to, stride, from, rows, bytes, flip) }
}

/// See `Row`.
///
/// # Safety
/// AVX2 and FMA; the rest as of `Row`.
#[target_feature(enable = "avx2,fma")]
unsafe fn row_f32(sums: *mut f32, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    // SAFETY: the caller's contract is the same.
    unsafe { row::<Dwords>(sums, x, w, rows, bytes) }
}

/// The same of bf16.
///
/// # Safety
/// AVX2 and FMA; the rest as of `Row`.
#[target_feature(enable = "avx2,fma")]
unsafe fn row_bf16(sums: *mut f32, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    // SAFETY: the caller's contract is the same.
    unsafe { row::<Bf16>(sums, x, w, rows, bytes) }
}

/// What `tile` makes of one row, in the same order, from W as it lies: a block of eight by eight dwords goes from the registers that exchanged it straight
/// into the sums. Two groups of rows take turns, since each addition to a sum waits for the one before.
///
/// # Safety
/// AVX2 and FMA; the rest as of `Row`.
#[inline(always)]
unsafe fn row<F: Form>(sums: *mut f32, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    // SAFETY: the blocks lie within `bytes` of the rows, and their dwords within x; there is room for GROUP sums.
    unsafe {
        let whole = if rows == GROUP { bytes / LINE * LINE } else { 0 };
        let mut acc = [_mm256_setzero_ps(); GROUP / LANES];
        let groups = [0, 1].map(|i| Bytes { data: w.data.wrapping_add(i * LANES * w.row_bytes), ..w });
        for start in (0..whole).step_by(LINE) {
            for row in GROUP..2 * GROUP {
                // Of the next rows; a prefetch beyond the end does no harm.
                _mm_prefetch::<_MM_HINT_T1>(w.data.wrapping_add(row * w.row_bytes + start).cast());
            }
            for start in [start, start + WHOLE] {
                // No closure: it would not be compiled for AVX2.
                let some = block(groups[0], LANES, start, WHOLE);
                let others = block(groups[1], LANES, start, WHOLE);
                for i in 0..LANES {
                    let (a, b) = (F::dwords(some[i]), F::dwords(others[i]));
                    for j in 0..4 / F::DWORD {
                        let x = x.add((start / 4 + i) * 4 / F::DWORD + j);
                        acc = [add(acc[0], x, a[j]), add(acc[1], x, b[j])];
                    }
                }
            }
        }
        let last = bytes.div_ceil(F::DWORD);
        for (group, (mut sum, from)) in acc.into_iter().zip(groups).enumerate() {
            let first = group * LANES;
            for start in (whole..bytes).step_by(WHOLE) {
                let some = rows.saturating_sub(first).min(LANES);
                let block = block(from, some, start, (bytes - start).min(WHOLE));
                for (i, &fours) in block.iter().enumerate() {
                    for (j, &dwords) in F::dwords(fours).iter().enumerate().take(4 / F::DWORD) {
                        let d = (start / 4 + i) * 4 / F::DWORD + j;
                        if d < last {
                            sum = add(sum, x.add(d), dwords);
                        }
                    }
                }
            }
            _mm256_storeu_ps(sums.add(first), sum);
        }
    }
}

/// # Safety
/// AVX2 and FMA; a number lies at `x`.
#[inline(always)]
unsafe fn add(sum: __m256, x: *const u32, w: __m256i) -> __m256 {
    // SAFETY: by the contract.
    unsafe { _mm256_fmadd_ps(_mm256_set1_ps(f32::from_bits(*x)), _mm256_castsi256_ps(w), sum) }
}

/// See `Row`, of bytes: sums of their products are exact, in whatever order, so that W is read row by row.
///
/// # Safety
/// AVX2; the rest as of `Row`.
#[target_feature(enable = "avx2")]
unsafe fn row_int8(sums: *mut i32, x: *const u32, w: Bytes, rows: usize, bytes: usize) {
    /// Rows at a time.
    const SOME: usize = 4;
    /// Bytes that become a vector of 16-bit integers.
    const STEP: usize = 16;
    let whole = bytes / LINE * LINE;
    for first in (0..rows).step_by(SOME) {
        // Beyond the last row that row is read again, and its sum dropped.
        let at = [0, 1, 2, 3].map(|r| w.data.wrapping_add((first + r).min(rows - 1) * w.row_bytes));
        let mut acc = [[0; LANES]; SOME];
        // SAFETY: `bytes` of the rows and as many halves of dwords of x are read.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); SOME];
            for start in (0..whole).step_by(LINE) {
                for row in at {
                    _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(start + AHEAD).cast());
                }
                for start in (start..start + LINE).step_by(STEP) {
                    let x = _mm256_loadu_si256(x.add(start / 2).cast());
                    for (sum, row) in sums.iter_mut().zip(at) {
                        let w = _mm256_cvtepi8_epi16(_mm_loadu_si128(row.add(start).cast()));
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, x));
                    }
                }
            }
            for start in (whole..bytes).step_by(STEP) {
                let n = STEP.min(bytes - start);
                let x = load(x.add(start / 2).cast(), n.div_ceil(2) * 4);
                for (sum, row) in sums.iter_mut().zip(at) {
                    let w = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(load(row.add(start), n)));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, x));
                }
            }
            for (acc, sum) in acc.iter_mut().zip(sums) {
                _mm256_storeu_si256(acc.as_mut_ptr().cast(), sum);
            }
        }
        for (r, acc) in acc.iter().enumerate().take(rows - first) {
            // SAFETY: row first + r < rows, at most GROUP of them.
            unsafe { *sums.add(first + r) = acc.iter().sum() };
        }
    }
}
