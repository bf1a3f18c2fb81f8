//! Choice of the next token from a row of logits.
use crate::error::Result;

/// Temperature 0 is greedy. `top_p` in (0, 1]; 1 keeps all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
}

/// Index of the largest logit, the first of equals. NaN anywhere is an error.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    todo!()
}

/// A token drawn with `uniform` in [0, 1); logits / temperature, softmax, smallest set of most likely tokens whose sum reaches top_p, in f64.
pub fn draw(logits: &[f32], sampling: Sampling, uniform: f64) -> Result<u32> {
    todo!()
}

/// log softmax(logits)[token], in f64.
pub fn log_probability(logits: &[f32], token: u32) -> Result<f64> {
    todo!()
}
