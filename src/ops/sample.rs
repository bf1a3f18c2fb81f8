//! Choice of the next token from a row of logits.
use crate::error::{Error, Result};

/// Temperature 0 is greedy. `top_p` in (0, 1]; 1 keeps all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
}

/// Index of the largest logit, the first of equals. NaN anywhere is an error.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    largest("sample argmax", logits)
}

fn largest(op: &'static str, logits: &[f32]) -> Result<u32> {
    let mut best = (0, *logits.first().ok_or_else(|| Error::op(op, "logits", "none"))?);
    for (i, &x) in logits.iter().enumerate() {
        if x.is_nan() {
            return Err(Error::op(op, "numbers", format!("NaN at {i}")));
        }
        if x > best.1 {
            best = (i, x);
        }
    }
    Ok(best.0 as u32)
}

/// A token drawn with `uniform` in [0, 1); logits / temperature, softmax, smallest set of most likely tokens whose sum reaches top_p, in f64.
/// Likely tokens come first, among equals the lower id, so that a tie at the edge of the set has one outcome.
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
    let best = largest(OP, logits)?;
    if temperature == 0.0 {
        return Ok(best);
    }
    let max = f64::from(logits[best as usize]);
    let weight = |x: &f32| ((f64::from(*x) - max) / f64::from(temperature)).exp();
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let kept = nucleus(&weights, f64::from(top_p));
    let mut left = uniform * kept.iter().map(|&id| weights[id as usize]).sum::<f64>();
    for &id in &kept {
        let weight = weights[id as usize];
        if left < weight {
            return Ok(id);
        }
        left -= weight;
    }
    // Rounding ate the last sliver.
    Ok(best)
}

/// The smallest set of the largest weights that has the share `top_p` of their sum: largest first, then by id; all, by id, if the share is 1.
fn nucleus(weights: &[f64], top_p: f64) -> Vec<u32> {
    let ids = 0..weights.len() as u32;
    if top_p == 1.0 {
        return ids.collect();
    }
    let total: f64 = weights.iter().sum();
    // All weights below this one together are less than the share that may be left out: no need to sort them.
    let least = (1.0 - top_p) * total / weights.len() as f64;
    let mut ranked: Vec<u32> = ids.filter(|&id| weights[id as usize] >= least).collect();
    ranked.sort_unstable_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]).then(a.cmp(&b)));
    let mut sum = 0.0;
    let last = ranked.iter().position(|&id| {
        sum += weights[id as usize];
        sum >= top_p * total
    });
    ranked.truncate(last.map_or(ranked.len(), |i| i + 1));
    ranked
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
