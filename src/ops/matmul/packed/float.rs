//! f32 activations by weights of any type, in f32.
//!
//! Where the weights are bf16, activations are rounded to bf16 as well (to nearest, ties to even): products are exact then. Sums are f32, one pair of k after
//! the other, and within a pair in the order of `vdpbf16ps` where the processor has that (AVX-512 BF16), which takes subnormal numbers as zeros; else with one
//! rounding a product. Weights of other types are widened to f32.

use super::{Kernel, Operand, Source, portable, run};
use crate::ops::vector_math::vectorised;
use crate::tensor::Elements;

/// How activations and weights are multiplied.
#[derive(Clone, Copy)]
pub struct Method {
    pub kernel: &'static Kernel<f32>,
    /// The kernel takes pairs of bf16.
    pub pairs: bool,
}

impl Method {
    /// Dwords that so many numbers become.
    pub fn dwords(self, n: usize) -> usize {
        if self.pairs { n.div_ceil(2) } else { n }
    }

    /// Rounds numbers to bf16, as dwords that the kernel takes; of an odd number the last pair has a zero.
    pub fn round(self, to: &mut [u32], x: &[f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `methods` has pairs only where the processor has AVX-512 BF16.
            return unsafe { super::avx512::round_pairs(to, x) };
        }
        round_singly(to, x);
    }

    /// The same of two rows, number by number: the first row's is the low half of a pair. Without pairs the second is not read.
    pub fn round_rows(self, to: &mut [u32], low: &[f32], high: &[f32]) {
        if self.pairs { round_rows(to, low, high) } else { round_singly(to, low) }
    }
}

/// What this processor can do, the best first.
pub fn methods(bf16: bool) -> impl Iterator<Item = Method> {
    let method = |kernel| Method { kernel, pairs: false };
    #[cfg(target_arch = "x86_64")]
    let found = {
        use super::{avx2, avx512};
        let pairs = avx512::bf16().filter(|_| bf16).map(|kernel| Method { kernel, pairs: true });
        pairs.into_iter().chain(avx512::f32().into_iter().chain(avx2::f32()).map(method))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let found = {
        let _ = bf16;
        std::iter::empty()
    };
    found.chain([method(&portable::F32)])
}

/// Whether activations are rounded to bf16 for these weights.
fn is_bf16(weight: &Elements) -> bool {
    matches!(weight, Elements::Bf16(_))
}

/// x [M, K] by each of the weights [N, K]: `finish(weight, row, column, sums)` gets every element once, in parts of rows.
pub(in crate::ops) fn products(
    x: &[f32],
    k: usize,
    m: usize,
    weights: &[(Elements, usize)],
    finish: &(impl Fn(usize, usize, usize, &mut [f32]) + Sync),
) {
    let mut first = 0;
    // Weights of one kind are taken together.
    for some in weights.chunk_by(|a, b| is_bf16(&a.0) == is_bf16(&b.0)) {
        if let Some(method) = methods(is_bf16(&some[0].0)).next() {
            products_by(method, x, k, m, some, &|i, row, col, sums: &mut [f32]| {
                finish(first + i, row, col, sums)
            });
        }
        first += some.len();
    }
}

/// The same by one method, for weights of one kind.
pub(super) fn products_by(
    method: Method,
    x: &[f32],
    k: usize,
    m: usize,
    weights: &[(Elements, usize)],
    finish: &(impl Fn(usize, usize, usize, &mut [f32]) + Sync),
) {
    let Method { kernel, pairs } = method;
    let rounded = weights.iter().any(|(weight, _)| is_bf16(weight));
    let depth = method.dwords(k);
    assert!(x.len() == m * k && weights.iter().all(|(weight, n)| weight.len() == n * k), "products: sizes");
    let row_pairs = |row: usize, start: usize, to: &mut [u32]| {
        let x = &x[row * k..(row + 1) * k];
        method.round(to, &x[2 * start..k.min(2 * (start + to.len()))]);
    };
    let row_rounded = |row: usize, start: usize, to: &mut [u32]| {
        method.round(to, &x[row * k + start..][..to.len()]);
    };
    let source = match (rounded, pairs) {
        (false, _) => Source::Raw(bytemuck::cast_slice(x), k * size_of::<f32>()),
        (true, true) => Source::Made(&row_pairs),
        (true, false) => Source::Made(&row_rounded),
    };
    let x = Operand { rows: m, depth, source, flip: 0 };
    let wide: Vec<_> = weights
        .iter()
        .map(|(weight, _)| {
            move |row: usize, start: usize, to: &mut [u32]| {
                weight.widen(row * k + start, bytemuck::cast_slice_mut(to));
            }
        })
        .collect();
    let operands: Vec<Operand> = weights
        .iter()
        .zip(&wide)
        .map(|(&(weight, n), wide)| {
            let source = match weight {
                Elements::F32(w) => Source::Raw(bytemuck::cast_slice(w), k * size_of::<f32>()),
                Elements::Bf16(w) if pairs => Source::Raw(bytemuck::cast_slice(w), k * 2),
                Elements::Bf16(w) if kernel.half.is_some() => Source::Half(bytemuck::cast_slice(w), k * 2),
                _ => Source::Made(wide),
            };
            Operand { rows: n, depth, source, flip: 0 }
        })
        .collect();
    run(kernel, &x, &operands, finish);
}

/// The bits of x as a bf16: to nearest, ties to even; a NaN stays one.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

vectorised! {
    /// bf16, widened again.
    fn round_singly(to: &mut [u32], x: &[f32]) {
        for (to, &x) in to.iter_mut().zip(x) {
            *to = round(x) << 16;
        }
    }
}

vectorised! {
    /// Pairs of bf16 from two rows, the first row's in the low half.
    fn round_rows(to: &mut [u32], low: &[f32], high: &[f32]) {
        for ((to, &low), &high) in to.iter_mut().zip(low).zip(high) {
            *to = round(low) | round(high) << 16;
        }
    }
}
