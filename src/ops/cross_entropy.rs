//! Cross-entropy over answer tokens only: the caller gathers their rows, so logits of other positions never exist.
use std::sync::Arc;

use rayon::prelude::*;

use super::embedding::expect_below;
use super::vector_math::{exp, max, vectorised};
use super::{expect_shape, int, kernel_dtype};
use crate::error::{Error, Result};
use crate::tensor::{DType, Gpu, Indices, Launch, Ptr, Tensor};

const OP: &str = "cross_entropy";

/// losses ([M], f32, overwritten): -log softmax(logits)[target] of each row.
/// With `dlogits` ([M, V], overwritten): (softmax - onehot) * scale, the gradient of scale * sum. logits [M, V], targets M ids.
/// On a GPU logits are f32, dlogits f32 or bf16.
pub fn forward(
    losses: &mut Tensor,
    dlogits: Option<&mut Tensor>,
    logits: &Tensor,
    targets: &Indices,
    scale: f32,
) -> Result<()> {
    let vocabulary = logits.cols();
    expect_shape(OP, "logits", logits, &[targets.len(), vocabulary])?;
    expect_shape(OP, "losses", losses, &[targets.len()])?;
    expect_below(OP, "targets", targets, vocabulary)?;
    if let Some(dlogits) = &dlogits {
        expect_shape(OP, "dlogits", dlogits, logits.shape())?;
    }
    if let Some(gpu) = logits.gpu() {
        return launch(gpu, losses, dlogits, logits, targets, scale);
    }
    if targets.is_empty() {
        return Ok(());
    }
    let rows = logits.f32s()?.par_chunks_exact(vocabulary).zip(targets.par_iter()).zip(losses.f32s_mut()?);
    match dlogits {
        None => rows.for_each_init(
            || vec![0.0; vocabulary],
            |weights, ((row, &target), out)| {
                let sum = weigh(weights, row);
                *out = loss(row, target as usize, &sum) as f32;
            },
        ),
        Some(dlogits) => rows.zip(dlogits.f32s_mut()?.par_chunks_exact_mut(vocabulary)).for_each(
            |(((row, &target), out), drow)| {
                let sum = weigh(drow, row);
                let loss = loss(row, target as usize, &sum);
                multiply(drow, (f64::from(scale) / sum.total) as f32);
                // softmax - 1 at the target, without cancellation where softmax is almost 1.
                drow[target as usize] = ((-loss).exp_m1() * f64::from(scale)) as f32;
                *out = loss as f32;
            },
        ),
    }
    Ok(())
}

/// Sum of `losses`, in f64 in the order of the rows; waits for a GPU.
pub fn sum(losses: &Tensor) -> Result<f64> {
    Ok(losses.to_f32()?.f32s()?.iter().map(|&loss| f64::from(loss)).sum())
}

/// kernels/cross_entropy.cu
fn launch(
    gpu: &Arc<Gpu>,
    losses: &mut Tensor,
    dlogits: Option<&mut Tensor>,
    logits: &Tensor,
    targets: &Indices,
    scale: f32,
) -> Result<()> {
    const THREADS: u32 = 1024;
    if losses.dtype() != DType::F32 || logits.dtype() != DType::F32 {
        let got = format!("{} and {}", losses.dtype(), logits.dtype());
        return Err(Error::op(OP, "f32 losses and logits", got));
    }
    let dtype = match &dlogits {
        Some(dlogits) => kernel_dtype(OP, &[dlogits])?,
        None => DType::F32,
    };
    // A float for each warp.
    let at = Launch { grid: [targets.len(), 1, 1], block: THREADS, shared: 32 * size_of::<f32>() };
    let args = [
        losses.ptr_mut(gpu)?.into(),
        dlogits.map_or(Ok(Ptr::NULL), |d| d.ptr_mut(gpu))?.into(),
        logits.ptr(gpu)?.into(),
        targets.ptr(gpu)?.into(),
        int(OP, logits.cols())?.into(),
        scale.into(),
    ];
    gpu.launch(&format!("cross_entropy_forward_{dtype}"), at, &args)
}

struct Sum {
    /// The largest logit.
    max: f32,
    /// Sum of exp(logit - max).
    total: f64,
}

/// -log softmax(row)[target].
fn loss(row: &[f32], target: usize, sum: &Sum) -> f64 {
    f64::from(sum.max) - f64::from(row[target]) + sum.total.ln()
}

vectorised! {
    /// weights = exp(row - its largest element), and their sum in f64.
    fn weigh(weights: &mut [f32], row: &[f32]) -> Sum {
        let max = max(row);
        for (w, &x) in weights.iter_mut().zip(row) {
            *w = exp(x - max);
        }
        let mut lanes = [0.0f64; 16];
        let chunks = weights.chunks_exact(lanes.len());
        let rest: f64 = chunks.remainder().iter().map(|&w| f64::from(w)).sum();
        for chunk in chunks {
            for (lane, &w) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(w);
            }
        }
        Sum { max, total: lanes.iter().sum::<f64>() + rest }
    }
}

vectorised! {
    fn multiply(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}
