//! Cross-entropy over answer tokens only: the caller gathers their rows, so logits of other positions never exist.
use rayon::prelude::*;

use super::expect_shape;
use super::vector_math::{exp, max, vectorised};
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
    if let Some(dlogits) = &dlogits {
        expect_shape(OP, "dlogits", dlogits, logits.shape())?;
    }
    if targets.is_empty() {
        return Ok(0.0);
    }
    let rows = logits.f32s()?.par_chunks_exact(vocabulary).zip(targets);
    let losses: Vec<f64> = match dlogits {
        None => rows
            .map_init(
                || vec![0.0; vocabulary],
                |weights, (row, &target)| {
                    let sum = weigh(weights, row);
                    loss(row, target as usize, &sum)
                },
            )
            .collect(),
        Some(dlogits) => rows
            .zip(dlogits.f32s_mut()?.par_chunks_exact_mut(vocabulary))
            .map(|((row, &target), drow)| {
                let sum = weigh(drow, row);
                let loss = loss(row, target as usize, &sum);
                multiply(drow, (f64::from(scale) / sum.total) as f32);
                // softmax - 1 at the target, without cancellation where softmax is almost 1.
                drow[target as usize] = ((-loss).exp_m1() * f64::from(scale)) as f32;
                loss
            })
            .collect(),
    };
    Ok(losses.iter().sum())
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
