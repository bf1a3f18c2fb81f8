//! The matrix product under linear, lora and attention: C = alpha A B (+ C), f32, through the `gemm` crate.
//! Rows (or, for few rows, columns) of C are cut into pieces of a size that depends on the shape alone; each piece is one single-threaded gemm,
//! so the sum over k has one order whatever the number of threads.

/// A strided view: element (i, j) is data[i * rs + j * cs].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub rs: usize,
    pub cs: usize,
}

/// c[i * ldc + j] = beta * c + alpha * sum_k a(i, k) b(k, j) for i < m, j < n; beta is 0 (c is not read) or 1.
/// Panics if a view is too short: callers have checked shapes. Large products are split over rayon's threads.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    m: usize,
    n: usize,
    k: usize,
    c: &mut [f32],
    ldc: usize,
    alpha: f32,
    a: View,
    b: View,
    accumulate: bool,
) {
    todo!()
}
