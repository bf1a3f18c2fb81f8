//! One file per op: the maths and its source, shapes, CPU code. Outputs come first and are `&mut`; every function checks
//! shapes before it touches memory. Loops are split over threads in pieces that depend on the shape alone,
//! so the same bits come out whatever the number of threads.
//! Letters in shapes: B batch, T tokens, C hidden width, NH heads, NKV key/value heads, HS head size, V vocabulary, P patches, I intermediate, R LoRA rank.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod clip_grad_norm;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod layer_norm;
pub mod linear;
pub mod lora;
pub mod matmul;
pub mod patch_embed;
pub mod pixel_shuffle;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod swiglu;

mod pieces;
mod vector_math;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// `Ok` if `tensor` has exactly `shape`; else an error that names the op and the argument.
fn expect_shape(op: &'static str, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        Ok(())
    } else {
        Err(Error::op(op, format!("{name} {shape:?}"), format!("{:?}", tensor.shape())))
    }
}
