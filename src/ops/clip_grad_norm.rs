//! Global-norm clipping (as torch.nn.utils.clip_grad_norm_): all gradients are scaled by max_norm / (norm + 1e-6) where that is
//! less than 1; norm is the L2 norm over all gradients.
use rayon::prelude::*;

use super::pieces::{self, PIECE};
use super::vector_math::vectorised;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// L2 norm over all gradients, summed in f64.
pub fn norm(grads: &[&Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for grad in grads {
        sum += squares(grad.f32s()?);
    }
    Ok(sum.sqrt())
}

/// Scales in place where the norm exceeds `max_norm`; gives the norm before. A norm that is not finite is an error.
pub fn clip(grads: &mut [&mut Tensor], max_norm: f32) -> Result<f64> {
    if max_norm.is_nan() || max_norm < 0.0 {
        return Err(Error::op("clip_grad_norm", "max_norm of at least 0", max_norm.to_string()));
    }
    let norm = norm(&grads.iter().map(|g| &**g).collect::<Vec<_>>())?;
    if !norm.is_finite() {
        return Err(Error::Failure(format!("clip_grad_norm: the norm of the gradients is {norm}")));
    }
    let factor = (f64::from(max_norm) / (norm + 1e-6)) as f32;
    if factor < 1.0 {
        for grad in grads {
            pieces::each(grad.f32s_mut()?, PIECE, |_, grad| scale(grad, factor));
        }
    }
    Ok(norm)
}

fn squares(x: &[f32]) -> f64 {
    if x.len() <= PIECE {
        return sum_squares(x);
    }
    let partial: Vec<f64> = x.par_chunks(PIECE).map(sum_squares).collect();
    partial.iter().sum()
}

vectorised! {
    fn sum_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        let chunks = x.chunks_exact(lanes.len());
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}

vectorised! {
    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}
