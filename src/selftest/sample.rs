//! sample: the next tokens, and the log-probabilities of given ones. Logits are f32 always.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::sample::{Draw, Sampling, draw_rows, log_probability_rows};
use crate::selftest::on::On;
use crate::tensor::{DType, Indices, Tensor};

/// Rows, vocabulary.
const QUICK: &[(usize, usize)] = &[(1, 1), (3, 97), (2, 1025)];
const FULL: &[(usize, usize)] = &[(32, 49280), (100, 49280), (8, 151_936)];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let full = if size.quick() { &[] } else { FULL };
    let mut cases = Vec::new();
    for &(rows, vocabulary) in QUICK.iter().chain(full) {
        let ways = [("argmax", 0.0, 1.0), ("temperature 0.8", 0.8, 1.0), ("top-p 0.9", 0.8, 0.9)];
        for (name, temperature, top_p) in ways {
            let shape = format!("{name}, {rows} x {vocabulary}");
            let sampling = Sampling { temperature, top_p };
            cases.push(Case::new("sample", shape, move |on| tokens(on, rows, vocabulary, sampling)));
        }
        let shape = format!("{rows} x {vocabulary}");
        cases.push(Case::new("sample log_probability", shape, move |on| likely(on, rows, vocabulary)));
    }
    cases.into_iter().map(|case| Case { types: &[DType::F32], ..case }).collect()
}

fn tokens(on: &mut On, rows: usize, vocabulary: usize, sampling: Sampling) -> Result<Vec<Output>> {
    let logits = on.random_f32(&[rows, vocabulary], 8.0)?;
    let draws: Vec<Draw> =
        (0..rows).map(|i| Draw { sampling, uniform: (i as f64 + 0.37) / rows as f64 }).collect();
    let rows: Indices = (0..rows as u32).rev().collect();
    let tokens = draw_rows(&logits, &rows, &draws)?;
    // Ids up to 2^24 are exact in f32.
    let tokens = tokens.iter().map(|&id| id as f32).collect();
    Output::one(Tensor::from_vec(&[rows.len()], tokens)?, Tolerance::exact("the same tokens"))
}

fn likely(on: &mut On, rows: usize, vocabulary: usize) -> Result<Vec<Output>> {
    let logits = on.random_f32(&[rows, vocabulary], 8.0)?;
    let tokens: Indices = on.indices(rows, vocabulary).into();
    let found = log_probability_rows(&logits, &tokens)?;
    // Summed in f64, kept in f32 for this comparison.
    let found = found.iter().map(|&p| p as f32).collect();
    Output::one(Tensor::from_vec(&[rows], found)?, Tolerance::stored(DType::F32, 1.0))
}
