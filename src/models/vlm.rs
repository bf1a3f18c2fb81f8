//! A whole model: processor, vision tower, connector, text tower.
use std::path::Path;

use crate::error::Result;
use crate::models::generate::{Completion, Request};

pub struct Vlm {}

impl Vlm {
    /// A checkpoint folder or hub id, with a PEFT adapter folder if given.
    pub fn load(model: &str, adapter: Option<&Path>) -> Result<Vlm> {
        todo!()
    }

    /// Completions of a batch, `samples` of them a request, in the order of the requests.
    pub fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>> {
        todo!()
    }
}
