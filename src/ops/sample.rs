//! Choice of the next token from a row of logits.
use std::cmp::Ordering;

use crate::error::{Error, Result};

/// Temperature 0 is greedy. `top_p` in (0, 1]; 1 keeps all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
}

/// Index of the largest logit, the first of equals. NaN anywhere is an error.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    const OP: &str = "sample argmax";
    let mut best = (0, *logits.first().ok_or_else(|| Error::op(OP, "logits", "none"))?);
    for (i, &x) in logits.iter().enumerate() {
        if x.is_nan() {
            return Err(Error::op(OP, "numbers", format!("NaN at {i}")));
        }
        if x > best.1 {
            best = (i, x);
        }
    }
    Ok(best.0 as u32)
}

/// A token drawn with `uniform` in [0, 1); logits / temperature, softmax, smallest set of most likely tokens whose sum reaches top_p, in f64.
/// Tokens are laid out by probability, then id, so that ties have one outcome.
pub fn draw(logits: &[f32], sampling: Sampling, uniform: f64) -> Result<u32> {
    const OP: &str = "sample draw";
    let Sampling { temperature, top_p } = sampling;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(Error::op(OP, "a temperature of 0 or more", temperature.to_string()));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Error::op(OP, "top_p in (0, 1]", top_p.to_string()));
    }
    if !(0.0..1.0).contains(&uniform) {
        return Err(Error::op(OP, "uniform in [0, 1)", uniform.to_string()));
    }
    expect_finite(OP, logits)?;
    let best = argmax(logits)?;
    if temperature == 0.0 {
        return Ok(best);
    }
    let max = f64::from(logits[best as usize]);
    let weight = |i: u32| ((f64::from(logits[i as usize]) - max) / f64::from(temperature)).exp();
    let mut ranked: Vec<(f64, u32)> = (0..logits.len() as u32).map(|i| (weight(i), i)).collect();
    ranked.sort_unstable_by(|a, b| match b.0.total_cmp(&a.0) {
        Ordering::Equal => a.1.cmp(&b.1),
        other => other,
    });
    let total: f64 = ranked.iter().map(|r| r.0).sum();
    let kept = if top_p < 1.0 { nucleus(&ranked, f64::from(top_p) * total) } else { &ranked[..] };
    let mass: f64 = kept.iter().map(|r| r.0).sum();
    let mut left = uniform * mass;
    for &(weight, token) in kept {
        if left < weight {
            return Ok(token);
        }
        left -= weight;
    }
    // Rounding ate the last sliver: it belongs to the last token that has any weight.
    Ok(kept.iter().rev().find(|r| r.0 > 0.0).map_or(best, |r| r.1))
}

/// The shortest head of `ranked` whose weights sum to `mass` or more.
fn nucleus(ranked: &[(f64, u32)], mass: f64) -> &[(f64, u32)] {
    let mut sum = 0.0;
    let end = ranked.iter().position(|r| {
        sum += r.0;
        sum >= mass
    });
    &ranked[..end.map_or(ranked.len(), |i| i + 1)]
}

/// log softmax(logits)[token], in f64.
pub fn log_probability(logits: &[f32], token: u32) -> Result<f64> {
    const OP: &str = "sample log_probability";
    let Some(&chosen) = logits.get(token as usize) else {
        return Err(Error::op(OP, format!("a token below {}", logits.len()), token.to_string()));
    };
    expect_finite(OP, logits)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
    Ok(f64::from(chosen) - f64::from(max) - sum.ln())
}

fn expect_finite(op: &'static str, logits: &[f32]) -> Result<()> {
    match logits.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::op(op, "finite logits", format!("{} at {i}", logits[i]))),
    }
}
