//! Choice of the next token from a row of logits.
use std::sync::Arc;

use super::embedding::expect_below;
use super::int;
use crate::error::{Error, Result};
use crate::tensor::{DType, Gpu, Indices, Launch, Ptr, Tensor, Upload, Uploaded};

/// Threads of a block of kernels/sample.cu, which has a row.
const THREADS: usize = 512;
/// What the kernel reports for a row with a logit that is not finite.
const BAD_TOKEN: u32 = u32::MAX;
/// Rows that draw in one launch: bounds the memory for their candidates.
const ROWS_PER_LAUNCH: usize = 64;
/// A weight and an id, as kernels/sample.cu keeps a candidate.
const CANDIDATE_BYTES: usize = 16;

/// Temperature 0 is greedy. `top_p` in (0, 1]; 1 keeps all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
}

/// How a row's token is chosen; `uniform` in [0, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub sampling: Sampling,
    pub uniform: f64,
}

/// struct Draw of kernels/sample.cu: a double and two floats.
impl Upload for Draw {
    type Raw = [u64; 2];
    fn raw(&self) -> Result<[u64; 2]> {
        let Sampling { temperature, top_p } = self.sampling;
        Ok([self.uniform.to_bits(), u64::from(temperature.to_bits()) | u64::from(top_p.to_bits()) << 32])
    }
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
    expect_draw(sampling, uniform)?;
    expect_finite(DRAW, logits)?;
    let best = largest(DRAW, logits)?;
    let Sampling { temperature, top_p } = sampling;
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

const DRAW: &str = "sample draw";

fn expect_draw(Sampling { temperature, top_p }: Sampling, uniform: f64) -> Result<()> {
    const OP: &str = DRAW;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(Error::op(OP, "a temperature of 0 or more", temperature.to_string()));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Error::op(OP, "top_p in (0, 1]", top_p.to_string()));
    }
    if !(0.0..1.0).contains(&uniform) {
        return Err(Error::op(OP, "uniform in [0, 1)", uniform.to_string()));
    }
    Ok(())
}

/// The token that `draw` gives for row `rows[i]` of logits [., V] and `draws[i]`, for each i; several may read one row. Only the tokens leave a GPU. It adds
/// in another order: there a token may be its neighbour's where `uniform` falls within rounding of the edge between them.
pub fn draw_rows(logits: &Tensor, rows: &Indices, draws: &[Draw]) -> Result<Vec<u32>> {
    const OP: &str = "sample draw_rows";
    if rows.len() != draws.len() {
        return Err(Error::op(OP, format!("{} draws", rows.len()), draws.len().to_string()));
    }
    expect_below(OP, "rows", rows, logits.rows())?;
    let Some(gpu) = logits.gpu() else {
        let (all, cols) = (logits.f32s()?, logits.cols());
        let one = |(&row, d): (&u32, &Draw)| draw(row_of(all, row, cols), d.sampling, d.uniform);
        return rows.iter().zip(draws).map(one).collect();
    };
    for d in draws {
        expect_draw(d.sampling, d.uniform)?;
    }
    let tokens = launch_draws(gpu, logits, rows, draws)?;
    if let Some(i) = tokens.iter().position(|&token| token == BAD_TOKEN) {
        let all = logits.to_f32()?;
        expect_finite(DRAW, row_of(all.f32s()?, rows[i], logits.cols()))?;
        return Err(Error::op(OP, "a token for each row", format!("none for row {}", rows[i])));
    }
    Ok(tokens)
}

/// `log_probability` of `tokens[r]` in row r of logits [R, V], for each r.
pub fn log_probability_rows(logits: &Tensor, tokens: &Indices) -> Result<Vec<f64>> {
    const OP: &str = "sample log_probability_rows";
    let (rows, cols) = (logits.rows(), logits.cols());
    if tokens.len() != rows {
        return Err(Error::op(OP, format!("{rows} tokens"), tokens.len().to_string()));
    }
    expect_below(OP, "tokens", tokens, cols)?;
    let Some(gpu) = logits.gpu() else {
        let all = logits.f32s()?;
        let one = |(row, &token): (u32, &u32)| log_probability(row_of(all, row, cols), token);
        return (0..).zip(tokens.iter()).map(one).collect();
    };
    let found = launch_log_probabilities(gpu, logits, tokens)?;
    if let Some(row) = found.iter().position(|p| p.is_nan()) {
        let all = logits.to_f32()?;
        expect_finite("sample log_probability", row_of(all.f32s()?, row as u32, cols))?;
        return Err(Error::op(OP, "a number for each row", format!("NaN for row {row}")));
    }
    Ok(found)
}

fn row_of(logits: &[f32], row: u32, cols: usize) -> &[f32] {
    &logits[row as usize * cols..(row as usize + 1) * cols]
}

/// The number of columns, for kernels/sample.cu: f32 logits, one or more in a row.
fn columns(op: &'static str, logits: &Tensor) -> Result<i32> {
    if logits.dtype() != DType::F32 || logits.cols() == 0 {
        return Err(Error::op(op, "f32 logits [R, V], V above 0", format!("{logits:?}")));
    }
    int(op, logits.cols())
}

/// One block of all threads a row; the shared memory is a double for each warp.
fn at(rows: usize) -> Launch {
    Launch { grid: [rows, 1, 1], block: THREADS as u32, shared: THREADS / 32 * size_of::<f64>() }
}

fn launch_draws(gpu: &Arc<Gpu>, logits: &Tensor, rows: &Indices, draws: &[Draw]) -> Result<Vec<u32>> {
    let cols = columns("sample draw_rows", logits)?;
    let mut tokens = vec![BAD_TOKEN; rows.len()];
    let out = gpu.alloc(size_of_val(&*tokens))?;
    let samples = draws.iter().any(|d| d.sampling.temperature > 0.0);
    let per_launch = if samples { ROWS_PER_LAUNCH } else { draws.len() };
    // The most logits that a thread sees.
    let strip = logits.cols().div_ceil(THREADS);
    let slots = if samples { draws.len().min(per_launch) * strip * THREADS } else { 0 };
    let scratch = gpu.alloc(slots * CANDIDATE_BYTES)?;
    let parameters: Uploaded<Draw> = draws.into();
    let (out_ptr, rows_ptr, draws_ptr) = (out.ptr().0, rows.ptr(gpu)?.0, parameters.ptr(gpu)?.0);
    let mut first = 0;
    while first < draws.len() {
        let count = per_launch.min(draws.len() - first);
        let args = [
            Ptr(out_ptr + (first * size_of::<u32>()) as u64).into(),
            logits.ptr(gpu)?.into(),
            Ptr(rows_ptr + (first * size_of::<u32>()) as u64).into(),
            Ptr(draws_ptr + (first * size_of::<[u64; 2]>()) as u64).into(),
            scratch.ptr().into(),
            (strip as u64).into(),
            cols.into(),
        ];
        gpu.launch("sample_forward_f32", at(count), &args)?;
        first += count;
    }
    gpu.download(bytemuck::cast_slice_mut(&mut tokens), &out)?;
    Ok(tokens)
}

fn launch_log_probabilities(gpu: &Arc<Gpu>, logits: &Tensor, tokens: &Indices) -> Result<Vec<f64>> {
    let cols = columns("sample log_probability_rows", logits)?;
    let mut found = vec![f64::NAN; tokens.len()];
    let out = gpu.alloc(size_of_val(&*found))?;
    let args = [out.ptr().into(), logits.ptr(gpu)?.into(), tokens.ptr(gpu)?.into(), cols.into()];
    gpu.launch("sample_log_probability_forward_f32", at(tokens.len()), &args)?;
    gpu.download(bytemuck::cast_slice_mut(&mut found), &out)?;
    Ok(found)
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
