//! Global-norm clipping (as torch.nn.utils.clip_grad_norm_): all gradients are scaled by max_norm / (norm + 1e-6) where that is
//! less than 1; norm is the L2 norm over all gradients.
use std::sync::Arc;

use rayon::prelude::*;

use super::pieces::{self, PIECE};
use super::vector_math::vectorised;
use super::{expect_f32, int};
use crate::error::{Error, Result};
use crate::tensor::{Buffer, Gpu, Indices, Launch, Ptr, Tensor, Upload, Uploaded};

const OP: &str = "clip_grad_norm";

/// L2 norm over all gradients, summed in f64; waits for a GPU.
pub fn norm(grads: &[&Tensor]) -> Result<f64> {
    if let Some(gpu) = grads.first().and_then(|g| g.gpu()) {
        grads.iter().try_for_each(|grad| expect_f32(OP, "gradients", grad))?;
        let part = |grad: &&Tensor| Ok(Part { grad: grad.ptr(gpu)?, len: grad.len(), ..Part::default() });
        let table = Table::new(grads.iter().map(part).collect::<Result<_>>()?)?;
        let norm = gpu.alloc(size_of::<f64>())?;
        table.norm(gpu, &norm)?;
        return read_norm(gpu, &norm);
    }
    let mut sum = 0.0;
    for grad in grads {
        sum += squares(grad.f32s()?);
    }
    Ok(sum.sqrt())
}

/// Scales (in main memory) in place where the norm exceeds `max_norm`; gives the norm before. A norm that is not finite is an error.
pub fn clip(grads: &mut [&mut Tensor], max_norm: f32) -> Result<f64> {
    if max_norm.is_nan() || max_norm < 0.0 {
        return Err(Error::op(OP, "max_norm of at least 0", max_norm.to_string()));
    }
    let norm = norm(&grads.iter().map(|g| &**g).collect::<Vec<_>>())?;
    expect_finite(norm)?;
    let factor = (f64::from(max_norm) / (norm + 1e-6)) as f32;
    if factor < 1.0 {
        for grad in grads {
            pieces::each(grad.f32s_mut()?, PIECE, |_, grad| scale(grad, factor));
        }
    }
    Ok(norm)
}

/// `norm`, if a step can be taken with it.
pub(super) fn expect_finite(norm: f64) -> Result<f64> {
    if norm.is_finite() {
        return Ok(norm);
    }
    Err(Error::Failure(format!("clip_grad_norm: the norm of the gradients is {norm}")))
}

/// What `Table::norm` has left in `norm`; waits for it.
pub(super) fn read_norm(gpu: &Gpu, norm: &Buffer) -> Result<f64> {
    let mut bytes = [0; size_of::<f64>()];
    gpu.download(&mut bytes, norm)?;
    Ok(f64::from_ne_bytes(bytes))
}

/// Where the parts of one trained tensor lie, each of `len` elements (struct Trained of kernels/many.cuh).
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Part {
    pub w: Ptr,
    pub m: Ptr,
    pub v: Ptr,
    pub grad: Ptr,
    pub rounded: Ptr,
    pub len: usize,
    /// Of all chunks, its first; `Table::new` counts.
    pub first_chunk: usize,
}

impl Default for Part {
    fn default() -> Self {
        let none = Ptr::NULL;
        Part { w: none, m: none, v: none, grad: none, rounded: none, len: 0, first_chunk: 0 }
    }
}

impl Upload for Part {
    type Raw = [u64; 7];
    fn raw(&self) -> Result<[u64; 7]> {
        let Part { w, m, v, grad, rounded, len, first_chunk } = *self;
        Ok([w.0, m.0, v.0, grad.0, rounded.0, len as u64, first_chunk as u64])
    }
}

/// Tensors that one launch goes over, cut into chunks.
pub(super) struct Table {
    parts: Uploaded<Part>,
    /// The part of each chunk.
    owners: Indices,
}

impl Table {
    pub fn new(mut parts: Vec<Part>) -> Result<Table> {
        /// Elements, as kernels/many.cuh has it.
        const CHUNK: usize = 4096;
        let mut owners = Vec::new();
        for (i, part) in parts.iter_mut().enumerate() {
            part.first_chunk = owners.len();
            owners.resize(owners.len() + part.len.div_ceil(CHUNK), i as u32);
        }
        int(OP, owners.len())?;
        Ok(Table { parts: parts.into(), owners: owners.into() })
    }

    /// Whether it is that of `parts`.
    pub fn is_of(&self, parts: &[Part]) -> bool {
        let same = |(a, b): (&Part, &Part)| Part { first_chunk: 0, ..*a } == Part { first_chunk: 0, ..*b };
        self.parts.len() == parts.len() && self.parts.iter().zip(parts).all(same)
    }

    /// A block for each chunk, and the kernel's arguments that say where chunks lie.
    pub fn blocks(&self, gpu: &Arc<Gpu>, shared: usize) -> Result<(Launch, [Ptr; 2])> {
        let at = Launch { grid: [self.owners.len(), 1, 1], block: 256, shared };
        Ok((at, [self.parts.ptr(gpu)?, self.owners.ptr(gpu)?]))
    }

    /// Leaves the L2 norm over all gradients in `norm`, an f64 (kernels/clip_grad_norm.cu).
    pub fn norm(&self, gpu: &Arc<Gpu>, norm: &Buffer) -> Result<()> {
        /// A double for each warp of a block.
        const SHARED: usize = 8 * size_of::<f64>();
        let chunks = self.owners.len();
        let partial = gpu.alloc(chunks * size_of::<f64>())?;
        let (at, [parts, owners]) = self.blocks(gpu, SHARED)?;
        let args = [partial.ptr().into(), parts.into(), owners.into()];
        gpu.launch("clip_grad_norm_squares_forward_f32", at, &args)?;
        let at = Launch { grid: [1, 1, 1], block: 256, shared: SHARED };
        let args = [norm.ptr().into(), partial.ptr().into(), int(OP, chunks)?.into()];
        gpu.launch("clip_grad_norm_forward_f32", at, &args)
    }
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
