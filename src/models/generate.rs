//! Autoregressive decoding of a ragged batch. What a request yields does not depend on what else is in the batch.
use std::sync::Arc;

use crate::models::image::Rgb;
use crate::models::prompt::Message;
use crate::ops::sample::Sampling;

#[derive(Clone)]
pub struct Request {
    pub messages: Vec<Message>,
    /// One for each `Content::Image`, in order. The same `Arc` in several requests of a batch goes through the vision tower once.
    pub images: Vec<Arc<Rgb>>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Completions wanted; their prompt is computed once.
    pub samples: usize,
    /// Sample i draws from a stream that depends on (seed, i) and nothing else.
    pub seed: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub ids: Vec<u32>,
    /// Without special tokens.
    pub text: String,
    /// The model ended it (an end token); else max_new_tokens did.
    pub ended: bool,
}
