//! Rotary position embedding (Su et al. 2021), the half-split form of Llama: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the two halves of the rotated part.
//! The angles are a table with a row per token: 1-D, M-RoPE and 2-D rotary differ in the table alone.
use std::collections::HashMap;
use std::sync::Arc;

use super::pieces;
use super::vector_math::vectorised;
use super::{expect_shape, int, kernel_dtype};
use crate::error::{Error, Result};
use crate::tensor::{DType, Gpu, Launch, Ptr, Tensor};

/// cos and sin [T, D/2] for the given positions and inverse frequencies theta^(-2i/D), computed as transformers does (f32 product, then cos/sin).
/// D = `rotated`, an even number. Each power, cosine and sine is taken in f64 and rounded, which no f32 library beats.
pub fn table(positions: &[u32], theta: f32, rotated: usize) -> Result<(Tensor, Tensor)> {
    let frequencies = frequencies(theta, rotated)?;
    let half = frequencies.len();
    let mut cos = Vec::with_capacity(positions.len() * half);
    let mut sin = Vec::with_capacity(positions.len() * half);
    // Packed sequences all start at 0, so most positions come more than once.
    let mut first_rows = HashMap::new();
    for (row, &position) in positions.iter().enumerate() {
        let first = *first_rows.entry(position).or_insert(row);
        if first < row {
            cos.extend_from_within(first * half..(first + 1) * half);
            sin.extend_from_within(first * half..(first + 1) * half);
            continue;
        }
        push_angles(&mut cos, &mut sin, position, &frequencies);
    }
    let shape = [positions.len(), half];
    Ok((Tensor::from_vec(&shape, cos)?, Tensor::from_vec(&shape, sin)?))
}

/// The same for M-RoPE (Qwen2-VL, arXiv 2409.12191): a token has a position in time, height and width, and the frequencies, as of `table`, are cut
/// into three sections in that order, each turned by its own. The lengths of the sections add up to D/2 ([16, 24, 24] for D = 128).
pub fn table_mrope(
    positions: &[[u32; 3]],
    sections: [usize; 3],
    theta: f32,
    rotated: usize,
) -> Result<(Tensor, Tensor)> {
    let frequencies = frequencies(theta, rotated)?;
    let [t, h, w] = sections;
    let got = || {
        Error::op("rope", format!("sections of {} frequencies", frequencies.len()), format!("{sections:?}"))
    };
    let (time, rest) = frequencies.split_at_checked(t).ok_or_else(got)?;
    let (height, width) = rest.split_at_checked(h).filter(|(_, width)| width.len() == w).ok_or_else(got)?;
    table_of(positions, [time, height, width])
}

/// The same for the 2-D rotary of Qwen2-VL's vision tower: of a head's HS elements, cos and sin [P, HS/2] have the row's angles first, HS/4 of them with
/// the inverse frequencies theta^(-2i/(HS/2)), then the column's. HS = `head_size`, a multiple of 4.
pub fn table_2d(positions: &[[u32; 2]], theta: f32, head_size: usize) -> Result<(Tensor, Tensor)> {
    if !head_size.is_multiple_of(4) {
        return Err(Error::op("rope", "a head size that 4 divides", head_size.to_string()));
    }
    let frequencies = frequencies(theta, head_size / 2)?;
    table_of(positions, [&frequencies, &frequencies])
}

/// Each token's position i turns by the frequencies of part i; the parts follow one another.
fn table_of<const N: usize>(positions: &[[u32; N]], parts: [&[f32]; N]) -> Result<(Tensor, Tensor)> {
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for token in positions {
        for (&position, frequencies) in token.iter().zip(parts) {
            push_angles(&mut cos, &mut sin, position, frequencies);
        }
    }
    let shape = [positions.len(), parts.iter().map(|p| p.len()).sum()];
    Ok((Tensor::from_vec(&shape, cos)?, Tensor::from_vec(&shape, sin)?))
}

/// theta^(-2i/D) for i below D/2, D = `rotated`.
fn frequencies(theta: f32, rotated: usize) -> Result<Vec<f32>> {
    if !rotated.is_multiple_of(2) {
        return Err(Error::op("rope", "an even number of rotated elements", rotated.to_string()));
    }
    let frequency = |i| {
        let exponent = (2 * i) as f32 / rotated as f32;
        1.0 / (f64::from(theta).powf(f64::from(exponent)) as f32)
    };
    Ok((0..rotated / 2).map(frequency).collect())
}

fn push_angles(cos: &mut Vec<f32>, sin: &mut Vec<f32>, position: u32, frequencies: &[f32]) {
    for &frequency in frequencies {
        let (s, c) = f64::from(position as f32 * frequency).sin_cos();
        cos.push(c as f32);
        sin.push(s as f32);
    }
}

/// In place on x [T, heads*HS]; the first 2 * cos.cols() elements of each head are rotated, the rest stay.
pub fn forward(x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<()> {
    turn(x, cos, sin, heads, Direction::Forward)
}

/// The inverse rotation, in place on the gradient.
pub fn backward(dx: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<()> {
    turn(dx, cos, sin, heads, Direction::Backward)
}

/// Queries [T, NH*HS] and keys [T, NKV*HS] by the same table: one launch on a GPU.
pub fn forward_pair(
    q: &mut Tensor,
    k: &mut Tensor,
    cos: &Tensor,
    sin: &Tensor,
    heads: [usize; 2],
) -> Result<()> {
    turn_pair(q, k, cos, sin, heads, Direction::Forward)
}

/// The inverse rotation of both gradients.
pub fn backward_pair(
    dq: &mut Tensor,
    dk: &mut Tensor,
    cos: &Tensor,
    sin: &Tensor,
    heads: [usize; 2],
) -> Result<()> {
    turn_pair(dq, dk, cos, sin, heads, Direction::Backward)
}

/// Queries, keys and values apart, [T, NH*HS] and twice [T, NKV*HS], from one product's rows [T, (NH + 2 NKV)*HS], q and k rotated: one pass
/// over memory on a GPU. A table without columns rotates nothing.
pub fn forward_split(
    [q, k, v]: [&mut Tensor; 3],
    qkv: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    heads: [usize; 2],
) -> Result<()> {
    let widths = check_split([q, k, v], qkv, (cos, sin), heads)?;
    if let Some(gpu) = qkv.gpu() {
        let parts = [q.ptr_mut(gpu)?, k.ptr_mut(gpu)?, v.ptr_mut(gpu)?];
        kernel_dtype("rope", &[qkv, q, k, v])?;
        return launch_split(gpu, parts, qkv.ptr(gpu)?, qkv, (cos, sin), heads, Direction::Forward);
    }
    let mut start = 0;
    for (part, width) in [&mut *q, &mut *k, v].into_iter().zip(widths) {
        let rows = part.f32s_mut()?.chunks_exact_mut(width.max(1));
        for (to, from) in rows.zip(qkv.f32s()?.chunks_exact(qkv.cols().max(1))) {
            to.copy_from_slice(&from[start..start + width]);
        }
        start += width;
    }
    forward_pair(q, k, cos, sin, heads)
}

/// dqkv from the gradients of the three parts, of which those of q and k are turned back.
pub fn backward_split(
    dqkv: &mut Tensor,
    [dq, dk, dv]: [&mut Tensor; 3],
    cos: &Tensor,
    sin: &Tensor,
    heads: [usize; 2],
) -> Result<()> {
    let widths = check_split([dq, dk, dv], dqkv, (cos, sin), heads)?;
    if let Some(gpu) = dqkv.gpu().cloned() {
        let parts = [dq.ptr(&gpu)?, dk.ptr(&gpu)?, dv.ptr(&gpu)?];
        kernel_dtype("rope", &[dqkv, dq, dk, dv])?;
        let to = dqkv.ptr_mut(&gpu)?;
        return launch_split(&gpu, parts, to, dqkv, (cos, sin), heads, Direction::Backward);
    }
    backward_pair(dq, dk, cos, sin, heads)?;
    let cols = dqkv.cols().max(1);
    let mut start = 0;
    for (part, width) in [&*dq, &*dk, &*dv].into_iter().zip(widths) {
        let rows = part.f32s()?.chunks_exact(width.max(1));
        for (to, from) in dqkv.f32s_mut()?.chunks_exact_mut(cols).zip(rows) {
            to[start..start + width].copy_from_slice(from);
        }
        start += width;
    }
    Ok(())
}

/// Widths of q, k and v, after all shapes are checked.
fn check_split(
    [q, k, v]: [&Tensor; 3],
    qkv: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    [heads, kv_heads]: [usize; 2],
) -> Result<[usize; 3]> {
    check(q, cos, sin, heads)?;
    check(k, cos, sin, kv_heads)?;
    let head_size = q.cols() / heads;
    let widths = [heads * head_size, kv_heads * head_size, kv_heads * head_size];
    expect_shape("rope", "qkv", qkv, &[q.rows(), widths.iter().sum()])?;
    expect_shape("rope", "k", k, &[q.rows(), widths[1]])?;
    expect_shape("rope", "v", v, &[q.rows(), widths[2]])?;
    Ok(widths)
}

/// rope_split of kernels/rope.cu; shapes have been checked.
fn launch_split(
    gpu: &Arc<Gpu>,
    [q, k, v]: [Ptr; 3],
    qkv_ptr: Ptr,
    qkv: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    [heads, kv_heads]: [usize; 2],
    direction: Direction,
) -> Result<()> {
    const OP: &str = "rope";
    let dtype = kernel_dtype(OP, &[qkv])?;
    expect_table(cos, sin)?;
    let at = Launch { grid: [qkv.rows().div_ceil(ROWS), 1, 1], block: 32 * ROWS as u32, shared: 0 };
    let head_size = qkv.cols() / (heads + 2 * kv_heads);
    // The kernel counts the elements of a row in 32 bits.
    int(OP, qkv.cols())?;
    let mut args = vec![q.into(), k.into(), v.into(), qkv_ptr.into()];
    args.extend([cos.ptr(gpu)?.into(), sin.ptr(gpu)?.into()]);
    for size in [qkv.rows(), heads, kv_heads, head_size, cos.cols()] {
        args.push(int(OP, size)?.into());
    }
    gpu.launch(&format!("rope_split_{}_{dtype}", direction.name()), at, &args)
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
        }
    }
}

fn turn(x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, direction: Direction) -> Result<()> {
    let half = check(x, cos, sin, heads)?;
    if half == 0 {
        return Ok(());
    }
    match (x.gpu().cloned(), direction) {
        (Some(gpu), _) => launch(&gpu, x, None, (cos, sin), [heads, 0], direction),
        (None, Direction::Forward) => rotate(x, cos, sin, heads, 1.0),
        (None, Direction::Backward) => rotate(x, cos, sin, heads, -1.0),
    }
}

fn turn_pair(
    q: &mut Tensor,
    k: &mut Tensor,
    cos: &Tensor,
    sin: &Tensor,
    [heads, kv_heads]: [usize; 2],
    direction: Direction,
) -> Result<()> {
    let half = check(q, cos, sin, heads)?;
    check(k, cos, sin, kv_heads)?;
    match q.gpu().cloned() {
        Some(gpu) if half > 0 && q.cols() / heads == k.cols() / kv_heads => {
            launch(&gpu, q, Some(k), (cos, sin), [heads, kv_heads], direction)
        }
        _ => {
            turn(q, cos, sin, heads, direction)?;
            turn(k, cos, sin, kv_heads, direction)
        }
    }
}

/// Rows of a block of kernels/rope.cu, one warp each.
const ROWS: usize = 4;

/// kernels/rope.cu
fn launch(
    gpu: &Arc<Gpu>,
    q: &mut Tensor,
    k: Option<&mut Tensor>,
    (cos, sin): (&Tensor, &Tensor),
    [heads, kv_heads]: [usize; 2],
    direction: Direction,
) -> Result<()> {
    const OP: &str = "rope";
    let dtype = match &k {
        Some(k) => kernel_dtype(OP, &[q, k])?,
        None => kernel_dtype(OP, &[q])?,
    };
    expect_table(cos, sin)?;
    let at = Launch { grid: [q.rows().div_ceil(ROWS), 1, 1], block: 32 * ROWS as u32, shared: 0 };
    let (rows, head_size) = (int(OP, q.rows())?, int(OP, q.cols() / heads)?);
    // The kernel counts the elements of q's and k's row in 32 bits.
    int(OP, q.cols() + q.cols() / heads * kv_heads)?;
    let k = k.map_or(Ok(Ptr::NULL), |k| k.ptr_mut(gpu))?;
    let args = [
        q.ptr_mut(gpu)?.into(),
        k.into(),
        cos.ptr(gpu)?.into(),
        sin.ptr(gpu)?.into(),
        rows.into(),
        int(OP, heads)?.into(),
        int(OP, kv_heads)?.into(),
        head_size.into(),
        int(OP, cos.cols())?.into(),
    ];
    gpu.launch(&format!("rope_{}_{dtype}", direction.name()), at, &args)
}

/// Angles need more than 8 bits.
fn expect_table(cos: &Tensor, sin: &Tensor) -> Result<()> {
    if [cos, sin].iter().all(|t| t.dtype() == DType::F32) {
        return Ok(());
    }
    Err(Error::op("rope", "f32 cos and sin", format!("{} and {}", cos.dtype(), sin.dtype())))
}

/// Half the number of rotated elements, after all shapes are checked.
fn check(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<usize> {
    let (cols, half) = (x.cols(), cos.cols());
    expect_shape("rope", "cos", cos, &[x.rows(), half])?;
    expect_shape("rope", "sin", sin, &[x.rows(), half])?;
    if heads == 0 || !cols.is_multiple_of(heads) || 2 * half > cols / heads {
        return Err(Error::op(
            "rope",
            format!("x [T, heads * HS] with {heads} heads of at least {} elements", 2 * half),
            format!("{:?}", x.shape()),
        ));
    }
    Ok(half)
}

fn rotate(x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, sign: f32) -> Result<()> {
    let (cols, half) = (x.cols(), cos.cols());
    let (cos, sin) = (cos.f32s()?, sin.f32s()?);
    pieces::each(x.f32s_mut()?, pieces::whole_rows(cols), |start, x| {
        let first = start / cols * half;
        rotate_rows(x, &cos[first..], &sin[first..], cols, cols / heads, half, sign);
    });
    Ok(())
}

vectorised! {
    fn rotate_rows(x: &mut [f32], cos: &[f32], sin: &[f32], cols: usize, head_size: usize, half: usize, sign: f32) {
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (row, (cos, sin)) in x.chunks_exact_mut(cols).zip(angles) {
            for head in row.chunks_exact_mut(head_size) {
                let (x1, x2) = head[..2 * half].split_at_mut(half);
                for (((x1, x2), &cos), &sin) in x1.iter_mut().zip(x2).zip(cos).zip(sin) {
                    let (a, b, sin) = (*x1, *x2, sin * sign);
                    *x1 = a * cos - b * sin;
                    *x2 = b * cos + a * sin;
                }
            }
        }
    }
}
