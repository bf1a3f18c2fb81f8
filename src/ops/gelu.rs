//! GELU (Hendrycks & Gimpel 2016), x Phi(x), and its two approximations:
//! `Exact`: Phi(x) = erfc(-x / sqrt 2) / 2, the distribution of a normal variable;
//! `Tanh`: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), computed as x * sigmoid(z), z = 2 sqrt(2/pi) (x + 0.044715 x^3): the same function,
//! without the cancellation of 1 + tanh for x < 0;
//! `Quick`: x * sigmoid(1.702 x).
use super::pieces::{self, PIECE};
use super::vector_math::{exp, sigmoid, vectorised};
use super::{expect_shape, launch_each, launch_elementwise};
use crate::error::Result;
use crate::tensor::Tensor;

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Exact,
    Tanh,
    Quick,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Exact, Kind::Tanh, Kind::Quick];

    /// How its kernels, and errors, are called.
    fn name(self) -> &'static str {
        match self {
            Kind::Exact => "gelu_exact",
            Kind::Tanh => "gelu",
            Kind::Quick => "gelu_quick",
        }
    }
}

/// 2 sqrt(2/pi)
const SLOPE: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;
const QUICK: f32 = 1.702;
/// Here sigmoid(z) is 0 or 1, as is Phi(x), and z^3 far from overflow.
const SATURATED: f32 = 32.0;

/// out, x of one shape.
pub fn forward(out: &mut Tensor, x: &Tensor, kind: Kind) -> Result<()> {
    expect_shape(kind.name(), "out", out, x.shape())?;
    if let Some(gpu) = x.gpu() {
        return launch_elementwise(gpu, kind.name(), out, &[x]);
    }
    let x = x.f32s()?;
    pieces::each(out.f32s_mut()?, PIECE, |start, out| {
        let x = &x[start..start + out.len()];
        match kind {
            Kind::Exact => exact(out, x),
            Kind::Tanh => tanh(out, x),
            Kind::Quick => quick(out, x),
        }
    });
    Ok(())
}

/// dx = dy * gelu'(x), overwritten.
pub fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, kind: Kind) -> Result<()> {
    expect_shape(kind.name(), "dx", dx, x.shape())?;
    expect_shape(kind.name(), "dy", dy, x.shape())?;
    if let Some(gpu) = x.gpu() {
        return launch_each(gpu, kind.name(), "backward", &mut [dx], &[dy, x], &[]);
    }
    let (dy, x) = (dy.f32s()?, x.f32s()?);
    pieces::each(dx.f32s_mut()?, PIECE, |start, dx| {
        let piece = start..start + dx.len();
        let (dy, x) = (&dy[piece.clone()], &x[piece]);
        match kind {
            Kind::Exact => exact_backward(dx, dy, x),
            Kind::Tanh => tanh_backward(dx, dy, x),
            Kind::Quick => quick_backward(dx, dy, x),
        }
    });
    Ok(())
}

vectorised! {
    fn exact(out: &mut [f32], x: &[f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * normal(bounded(x)).0;
        }
    }
}

vectorised! {
    fn exact_backward(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            let c = bounded(x);
            let (phi, density) = normal(c);
            *dx = dy * c.mul_add(density, phi);
        }
    }
}

vectorised! {
    fn tanh(out: &mut [f32], x: &[f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            let c = bounded(x);
            let (s, _) = sigmoid(c * (c * c).mul_add(SLOPE * CUBIC, SLOPE));
            *out = x * s;
        }
    }
}

vectorised! {
    fn tanh_backward(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            let c = bounded(x);
            let square = c * c;
            let (s, ds) = sigmoid(c * square.mul_add(SLOPE * CUBIC, SLOPE));
            *dx = dy * (c * ds).mul_add(square.mul_add(3.0 * SLOPE * CUBIC, SLOPE), s);
        }
    }
}

vectorised! {
    fn quick(out: &mut [f32], x: &[f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * sigmoid(QUICK * x).0;
        }
    }
}

vectorised! {
    fn quick_backward(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            let z = QUICK * bounded_quick(x);
            let (s, ds) = sigmoid(z);
            *dx = dy * z.mul_add(ds, s);
        }
    }
}

/// Phi(x) and its derivative. With a = |x| / sqrt 2 and t = 1 / (1 + a/2): erfc(a) = t exp(p(t) - a^2), p of degree 9 fitted for a up to 10
/// (5e-8 off in the exponent), beyond which it is 0 in f32.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const P: [f32; 10] = [
        0.145_744_56,
        -0.685_269_8,
        1.167_206_4,
        -0.710_214_4,
        -0.068_713_42,
        -0.004_886_915_4,
        0.036_698_7,
        0.386_201_44,
        0.998_683_9,
        -1.265_450_5,
    ];
    const DENSITY: f32 = 0.398_942_3; // 1 / sqrt(2 pi)
    let a = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / a.mul_add(0.5, 1.0);
    let mut p = P[0];
    for &c in &P[1..] {
        p = p.mul_add(t, c);
    }
    let tail = 0.5 * t * exp((-a).mul_add(a, p));
    (if x < 0.0 { tail } else { 1.0 - tail }, DENSITY * exp(-0.5 * x * x))
}

/// x within the saturated ends; NaN stays NaN.
#[inline(always)]
fn bounded(x: f32) -> f32 {
    let x = if x > SATURATED { SATURATED } else { x };
    if x < -SATURATED { -SATURATED } else { x }
}

/// The same for `Quick`, which is saturated further out.
#[inline(always)]
fn bounded_quick(x: f32) -> f32 {
    2.0 * bounded(0.5 * x)
}
