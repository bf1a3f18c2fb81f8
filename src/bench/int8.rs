//! Tensors and the call of what is quantised.

use super::cases::{Call, EPS, Maker};
use super::work::Work;
use crate::error::{Error, Result};
use crate::ops::gemm_int8::{self, Quantized};
use crate::ops::quantize::{self, MOST_ROTATED};
use crate::ops::rms_norm;
use crate::tensor::Tensor;

impl Maker {
    pub(super) fn quantised(&self, work: &Work) -> Result<Call> {
        Ok(match *work {
            Work::GemmInt8 { m, n, k } => {
                let (mut y, x, w) = (self.random(&[m, n])?, self.int8(m, k)?, self.int8(n, k)?);
                Box::new(move || gemm_int8::forward(&mut y, view(&x), view(&w), None, None))
            }
            Work::GemmInt8Swiglu { m, n, k } => {
                let (x, gate, up) = (self.int8(m, k)?, self.int8(n, k)?, self.int8(n, k)?);
                let (mut q, mut scale) = self.int8(m, n)?;
                let rotation = quantize::rotation(n, MOST_ROTATED);
                Box::new(move || {
                    gemm_int8::forward_swiglu(&mut q, &mut scale, view(&x), view(&gate), view(&up), rotation)
                })
            }
            Work::Quantize { rows, cols } => {
                let (x, (mut q, mut scale)) = (self.random(&[rows, cols])?, self.int8(rows, cols)?);
                let rotation = quantize::rotation(cols, MOST_ROTATED);
                Box::new(move || quantize::forward(&mut q, &mut scale, &x, rotation))
            }
            Work::RmsNormQuantized { rows, cols } => {
                // The sum grows by the same amount in each run, and stays a number.
                let ([mut x, residual], weight) = (self.randoms(&[rows, cols])?, self.random(&[cols])?);
                let rotation = quantize::rotation(cols, MOST_ROTATED);
                let (mut q, mut scale) = self.int8(rows, cols)?;
                Box::new(move || {
                    let residual = Some(&residual);
                    rms_norm::forward_quantized(&mut q, &mut scale, &mut x, residual, &weight, EPS, rotation)
                })
            }
            ref other => return Err(Error::Failure(format!("bench: no case for {}", other.op()))),
        })
    }

    /// Random numbers, quantised.
    fn int8(&self, rows: usize, cols: usize) -> Result<(Tensor, Tensor)> {
        let x = self.random(&[rows, cols])?;
        let (mut q, mut scale) = (x.like_i8(&[rows, cols])?, x.like_f32(&[rows])?);
        quantize::forward(&mut q, &mut scale, &x, 1)?;
        Ok((q, scale))
    }
}

fn view((q, scale): &(Tensor, Tensor)) -> Quantized<'_> {
    Quantized { q, scale }
}
