//! GELU (Hendrycks & Gimpel 2016), the tanh approximation: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
//! Computed as x * sigmoid(z), z = 2 sqrt(2/pi) (x + 0.044715 x^3): the same function, without the cancellation of 1 + tanh for x < 0.
use super::pieces::{self, PIECE};
use super::vector_math::{sigmoid, vectorised};
use super::{expect_shape, launch_each, launch_elementwise};
use crate::error::Result;
use crate::tensor::Tensor;

/// 2 sqrt(2/pi)
const SLOPE: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;
/// Here sigmoid(z) is 0 or 1 and z^3 far from overflow.
const SATURATED: f32 = 32.0;

/// out, x of one shape.
pub fn forward(out: &mut Tensor, x: &Tensor) -> Result<()> {
    expect_shape("gelu", "out", out, x.shape())?;
    if let Some(gpu) = x.gpu() {
        return launch_elementwise(gpu, "gelu", out, &[x]);
    }
    let x = x.f32s()?;
    pieces::each(out.f32s_mut()?, PIECE, |start, out| gelu(out, &x[start..start + out.len()]));
    Ok(())
}

/// dx = dy * gelu'(x), overwritten.
pub fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    expect_shape("gelu", "dx", dx, x.shape())?;
    expect_shape("gelu", "dy", dy, x.shape())?;
    if let Some(gpu) = x.gpu() {
        return launch_each(gpu, "gelu", "backward", &mut [dx], &[dy, x], &[]);
    }
    let (dy, x) = (dy.f32s()?, x.f32s()?);
    pieces::each(dx.f32s_mut()?, PIECE, |start, dx| {
        let piece = start..start + dx.len();
        gelu_backward(dx, &dy[piece.clone()], &x[piece]);
    });
    Ok(())
}

vectorised! {
    fn gelu(out: &mut [f32], x: &[f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            let c = bounded(x);
            let (s, _) = sigmoid(c * (c * c).mul_add(SLOPE * CUBIC, SLOPE));
            *out = x * s;
        }
    }
}

vectorised! {
    fn gelu_backward(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            let c = bounded(x);
            let square = c * c;
            let (s, ds) = sigmoid(c * square.mul_add(SLOPE * CUBIC, SLOPE));
            *dx = dy * (c * ds).mul_add(square.mul_add(3.0 * SLOPE * CUBIC, SLOPE), s);
        }
    }
}

/// x within the saturated ends; NaN stays NaN.
#[inline(always)]
fn bounded(x: f32) -> f32 {
    let x = if x > SATURATED { SATURATED } else { x };
    if x < -SATURATED { -SATURATED } else { x }
}
