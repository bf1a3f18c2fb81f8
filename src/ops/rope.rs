//! Rotary position embedding (Su et al. 2021), the half-split form of Llama: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the two halves of the rotated part.
use std::collections::HashMap;

use super::expect_shape;
use super::pieces;
use super::vector_math::vectorised;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// cos and sin [T, D/2] for the given positions and inverse frequencies theta^(-2i/D), computed as transformers does (f32 product, then cos/sin).
/// D = `rotated`, an even number. Each power, cosine and sine is taken in f64 and rounded, which no f32 library beats.
pub fn table(positions: &[u32], theta: f32, rotated: usize) -> Result<(Tensor, Tensor)> {
    if !rotated.is_multiple_of(2) {
        return Err(Error::op("rope", "an even number of rotated elements", rotated.to_string()));
    }
    let half = rotated / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = (2 * i) as f32 / rotated as f32;
            1.0 / (f64::from(theta).powf(f64::from(exponent)) as f32)
        })
        .collect();
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
        for &frequency in &frequencies {
            let (s, c) = f64::from(position as f32 * frequency).sin_cos();
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
    let shape = [positions.len(), half];
    Ok((Tensor::from_vec(&shape, cos)?, Tensor::from_vec(&shape, sin)?))
}

/// In place on x [T, heads*HS]; the first 2 * cos.cols() elements of each head are rotated, the rest stay.
pub fn forward(x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<()> {
    rotate(x, cos, sin, heads, 1.0)
}

/// The inverse rotation, in place on the gradient.
pub fn backward(dx: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<()> {
    rotate(dx, cos, sin, heads, -1.0)
}

fn rotate(x: &mut Tensor, cos: &Tensor, sin: &Tensor, heads: usize, sign: f32) -> Result<()> {
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
    if half == 0 {
        return Ok(());
    }
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
