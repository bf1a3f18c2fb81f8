//! Perplexity of a text, and how often two models would choose the same next token behind the text's own words (teacher forcing).
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::models::linear::Pass;
use crate::models::vlm::{Prompt, Vlm};
use crate::tensor::Tensor;

/// Rows of logits that are held at a time.
const ROWS: usize = 128;

/// What a model makes of a text, cut into windows that know nothing of each other.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    pub tokens: usize,
    /// Tokens behind the first of their window.
    pub predicted: usize,
    pub perplexity: f64,
    /// The most likely token in each of their places.
    #[serde(skip)]
    pub likeliest: Vec<u32>,
}

impl Reading {
    /// The share of places where both have the same token as the most likely one.
    pub fn agreement(&self, other: &Reading) -> f64 {
        let same = self.likeliest.iter().zip(&other.likeliest).filter(|(a, b)| a == b).count();
        same as f64 / self.predicted.max(1) as f64
    }
}

/// `on_window` is called after each window.
pub fn read(vlm: &Vlm, ids: &[u32], window: usize, on_window: &mut dyn FnMut()) -> Result<Reading> {
    let most = vlm.config.text.max_positions;
    if !(2..=most).contains(&window) {
        return Err(Error::Usage(format!("a window of {window} tokens, expected 2 to {most}")));
    }
    let (mut loss, mut likeliest) = (0.0, Vec::with_capacity(ids.len()));
    for ids in ids.chunks(window) {
        let x = vlm.states(&Prompt { ids, features: Vec::new() }, &[])?;
        let count = ids.len() - 1;
        for first in (0..count).step_by(ROWS) {
            let end = count.min(first + ROWS);
            let (logits, _) = vlm.text.logits(x.slice(first..end)?, Pass::Infer)?;
            for (row_loss, token) in rows(&logits, &ids[first + 1..=end])? {
                loss += row_loss;
                likeliest.push(token);
            }
        }
        on_window();
    }
    if likeliest.is_empty() {
        return Err(Error::Usage("a text of less than 2 tokens".into()));
    }
    let perplexity = (loss / likeliest.len() as f64).exp();
    Ok(Reading { tokens: ids.len(), predicted: likeliest.len(), perplexity, likeliest })
}

/// -log p of the target, and the first of the largest logits, of each row.
fn rows(logits: &Tensor, targets: &[u32]) -> Result<Vec<(f64, u32)>> {
    let logits = logits.to_f32()?;
    let width = logits.cols();
    let row = |(row, &target): (&[f32], &u32)| {
        let (token, most) = row
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best });
        let sum: f64 = row.iter().map(|&x| f64::from(x - most).exp()).sum();
        (sum.ln() + f64::from(most) - f64::from(row[target as usize]), token as u32)
    };
    Ok(logits.f32s()?.par_chunks_exact(width).zip(targets).map(row).collect())
}
