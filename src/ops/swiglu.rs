//! SwiGLU (Shazeer 2020): out = silu(gate) * up, silu(z) = z / (1 + exp(-z)).
use super::pieces::{self, PIECE};
use super::vector_math::{sigmoid, vectorised};
use super::{expect_shape, launch_each, launch_elementwise};
use crate::error::Result;
use crate::tensor::Tensor;

/// out, gate, up of one shape.
pub fn forward(out: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    expect_shape("swiglu", "out", out, gate.shape())?;
    expect_shape("swiglu", "up", up, gate.shape())?;
    if let Some(gpu) = gate.gpu() {
        return launch_elementwise(gpu, "swiglu", out, &[gate, up]);
    }
    let (gate, up) = (gate.f32s()?, up.f32s()?);
    pieces::each(out.f32s_mut()?, PIECE, |start, out| {
        let piece = start..start + out.len();
        swiglu(out, &gate[piece.clone()], &up[piece]);
    });
    Ok(())
}

/// dgate and dup overwritten.
pub fn backward(
    dgate: &mut Tensor,
    dup: &mut Tensor,
    dout: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    expect_shape("swiglu", "dgate", dgate, gate.shape())?;
    expect_shape("swiglu", "dup", dup, gate.shape())?;
    expect_shape("swiglu", "dout", dout, gate.shape())?;
    expect_shape("swiglu", "up", up, gate.shape())?;
    if let Some(gpu) = gate.gpu() {
        return launch_each(gpu, "swiglu", "backward", &mut [dgate, dup], &[dout, gate, up], &[]);
    }
    let (dout, gate, up) = (dout.f32s()?, gate.f32s()?, up.f32s()?);
    pieces::each2(dgate.f32s_mut()?, dup.f32s_mut()?, PIECE, |start, dgate, dup| {
        let piece = start..start + dgate.len();
        swiglu_backward(dgate, dup, &dout[piece.clone()], &gate[piece.clone()], &up[piece]);
    });
    Ok(())
}

vectorised! {
    fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate).0 * up;
        }
    }
}

vectorised! {
    fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) {
        let outputs = dgate.iter_mut().zip(dup);
        for ((((dgate, dup), &dout), &gate), &up) in outputs.zip(dout).zip(gate).zip(up) {
            let (s, ds) = sigmoid(gate);
            *dgate = dout * up * (s + gate * ds);
            *dup = dout * (gate * s);
        }
    }
}
