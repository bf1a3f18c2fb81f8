//! Cross-entropy over answer tokens only: the caller gathers their rows, so logits of other positions never exist.
use rayon::prelude::*;

use super::expect_shape;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const OP: &str = "cross_entropy";

/// Sum over rows of -log softmax(logits)[target], summed in f64 in row order.
/// With `dlogits` ([M, V], overwritten): (softmax - onehot) * scale, the gradient of scale * sum. logits [M, V], targets M ids.
pub fn forward(dlogits: Option<&mut Tensor>, logits: &Tensor, targets: &[u32], scale: f32) -> Result<f64> {
    let vocabulary = logits.cols();
    expect_shape(OP, "logits", logits, &[targets.len(), vocabulary])?;
    if let Some(&bad) = targets.iter().find(|&&t| t as usize >= vocabulary) {
        return Err(Error::op(OP, format!("targets below {vocabulary}"), bad.to_string()));
    }
    if targets.is_empty() {
        return Ok(0.0);
    }
    let rows = logits.f32s()?.par_chunks_exact(vocabulary).zip(targets);
    let losses: Vec<f64> = match dlogits {
        None => rows.map(|(row, &t)| loss(row, t as usize).0).collect(),
        Some(dlogits) => {
            expect_shape(OP, "dlogits", dlogits, logits.shape())?;
            let drows = dlogits.f32s_mut()?.par_chunks_exact_mut(vocabulary);
            rows.zip(drows).map(|((row, &t), drow)| gradient(drow, row, t as usize, scale)).collect()
        }
    };
    Ok(losses.iter().sum())
}

/// -log softmax(row)[target] and the log-sum-exp of the row.
fn loss(row: &[f32], target: usize) -> (f64, f64) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from((x - max).exp())).sum();
    let lse = f64::from(max) + sum.ln();
    (lse - f64::from(row[target]), lse)
}

fn gradient(drow: &mut [f32], row: &[f32], target: usize, scale: f32) -> f64 {
    let (loss, lse) = loss(row, target);
    for (d, &x) in drow.iter_mut().zip(row) {
        *d = ((f64::from(x) - lse).exp() * f64::from(scale)) as f32;
    }
    // softmax - 1 at the target without cancellation: -(1 - exp(-loss)).
    drow[target] = ((-loss).exp_m1() * f64::from(scale)) as f32;
    loss
}
