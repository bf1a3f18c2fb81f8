//! Scaled dot-product attention over a ragged batch, grouped heads, causal or not, with an online softmax (Dao 2022): no T x T buffer.
use crate::error::Result;
use crate::tensor::Tensor;

/// One sequence: its rows in q (and out), and its rows in k and v. With causal masking query i (0-based in the span) sees keys
/// 0 ..= i + (k_len - q_len), so that a decode step is q_len = 1 over a cache of k_len keys. Causal needs k_len >= q_len.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub q_start: usize,
    pub q_len: usize,
    pub k_start: usize,
    pub k_len: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub heads: usize,     // NH
    pub kv_heads: usize,  // NKV, divides NH
    pub head_size: usize, // HS
    pub scale: f32,       // usually 1/sqrt(HS)
    pub causal: bool,
}

/// out [Tq, NH*HS]; lse [Tq, NH] (log-sum-exp of the scaled scores, for the backward); q [Tq, NH*HS]; k, v [Tk, NKV*HS].
/// Rows that no span names are left as they are.
pub fn forward(
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &[Span],
    config: Config,
) -> Result<()> {
    todo!()
}

/// Overwrites dq, dk, dv (shapes of q, k, v) in the rows that spans name; spans must not share key rows.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    spans: &[Span],
    config: Config,
) -> Result<()> {
    todo!()
}
