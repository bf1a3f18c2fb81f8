//! Products of 8-bit integers, exact in i32: AVX-512 VNNI, AVX2 and portable code give the same.
//!
//! VNNI multiplies unsigned bytes by signed ones. W goes in as w + 128 (its top bit flipped), and 128 times the sum of a row of x is taken off again;
//! what overflows on the way is modulo 2^32, as is the result, which fits. Without
//! VNNI both become 16-bit integers, so that nothing saturates.

use rayon::prelude::*;

use super::{Kernel, Operand, Source, portable, run};
use crate::ops::vector_math::vectorised;

#[derive(Clone, Copy)]
pub(super) struct Method {
    pub kernel: &'static Kernel<i32>,
    /// The kernel takes four bytes to a dword, w + 128 among them; else two 16-bit integers.
    pub bytes: bool,
}

/// What this processor can do, the best first.
pub(super) fn methods() -> impl Iterator<Item = Method> {
    #[cfg(target_arch = "x86_64")]
    let found = {
        use super::{avx2, avx512};
        let bytes = avx512::int8().map(|kernel| Method { kernel, bytes: true });
        bytes.into_iter().chain(avx2::i16().map(|kernel| Method { kernel, bytes: false }))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let found = std::iter::empty();
    found.chain([Method { kernel: &portable::I16, bytes: false }])
}

/// x [M, K] by each of the weights [N, K], elements in -127 ..= 127 and K up to 2^17: `finish(weight, row, column, sums)` gets every element once, in parts of
/// rows.
pub(in crate::ops) fn products_int8(
    x: &[i8],
    k: usize,
    m: usize,
    weights: &[(&[i8], usize)],
    finish: &(impl Fn(usize, usize, usize, &mut [i32]) + Sync),
) {
    if let Some(method) = methods().next() {
        products_by(method, x, k, m, weights, finish);
    }
}

/// The same by one method.
pub(super) fn products_by(
    Method { kernel, bytes }: Method,
    x: &[i8],
    k: usize,
    m: usize,
    weights: &[(&[i8], usize)],
    finish: &(impl Fn(usize, usize, usize, &mut [i32]) + Sync),
) {
    /// Bytes of x below which the calling thread sums them all.
    const ENOUGH: usize = 1 << 18;
    assert!(x.len() == m * k && weights.iter().all(|(weight, n)| weight.len() == n * k), "products: sizes");
    if !bytes && kernel.half.is_some() {
        let half = |data, rows| {
            let source = Source::Half(bytemuck::cast_slice::<i8, u8>(data), k);
            Operand { rows, depth: k.div_ceil(2), source, flip: 0 }
        };
        let operands: Vec<Operand> = weights.iter().map(|&(weight, n)| half(weight, n)).collect();
        return run(kernel, &half(x, m), &operands, finish);
    }
    if !bytes {
        let wide = |data| move |row: usize, start: usize, to: &mut [u32]| widen_row(to, data, k, row, start);
        let made = |rows, make| Operand { rows, depth: k.div_ceil(2), source: Source::Made(make), flip: 0 };
        let x = wide(x);
        let wide: Vec<_> = weights.iter().map(|&(weight, _)| wide(weight)).collect();
        let operands: Vec<Operand> = weights.iter().zip(&wide).map(|(&(_, n), wide)| made(n, wide)).collect();
        return run(kernel, &made(m, &x), &operands, finish);
    }
    let raw = |data, rows, flip| {
        let source = Source::Raw(bytemuck::cast_slice::<i8, u8>(data), k);
        Operand { rows, depth: k.div_ceil(4), source, flip }
    };
    let excess = |row: usize| sum(&x[row * k..(row + 1) * k]).wrapping_mul(128);
    let excess: Vec<i32> = match x.len() < ENOUGH {
        true => (0..m).map(excess).collect(),
        false => (0..m).into_par_iter().map(excess).collect(),
    };
    let operands: Vec<Operand> = weights.iter().map(|&(weight, n)| raw(weight, n, 0x8080_8080)).collect();
    run(kernel, &raw(x, m, 0), &operands, &|weight, row, col, sums: &mut [i32]| {
        sums.iter_mut().for_each(|sum| *sum = sum.wrapping_sub(excess[row]));
        finish(weight, row, col, sums);
    });
}

vectorised! {
    fn sum(x: &[i8]) -> i32 {
        x.iter().map(|&x| i32::from(x)).sum()
    }
}

/// Pairs of a row from pair `start` on, as 16-bit integers, the first in the low half; beyond its end there is a zero.
fn widen_row(to: &mut [u32], data: &[i8], k: usize, row: usize, start: usize) {
    let pair = |low: i8, high: i8| u32::from(low as i16 as u16) | u32::from(high as i16 as u16) << 16;
    let from = &data[row * k + 2 * start..(row + 1) * k];
    let (whole, rest) = from.as_chunks::<2>();
    let rest = rest.first().map(|&x| pair(x, 0));
    for (to, from) in to.iter_mut().zip(whole.iter().map(|x| pair(x[0], x[1])).chain(rest)) {
        *to = from;
    }
}
