//! Conversations to token ids: chat template, picture placeholders, tokenizer.
use std::path::Path;

use crate::error::Result;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Image,
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// "user", "assistant" or "system".
    pub role: String,
    pub content: Vec<Content>,
}

impl Message {
    pub fn new(role: &str, content: Vec<Content>) -> Self {
        Message { role: role.to_string(), content }
    }
}

/// tokenizer.json, the chat template, and how many tokens one tile takes.
pub struct Prompter {}

impl Prompter {
    /// `tile_tokens`: picture tokens of one tile, (image_size / patch_size / scale_factor)^2.
    pub fn read(folder: &Path, tile_tokens: usize) -> Result<Prompter> {
        todo!()
    }

    /// The conversation as text, one `<image>` a picture; `generate` appends the start of the assistant's turn.
    pub fn render(&self, messages: &[Message], generate: bool) -> Result<String> {
        todo!()
    }

    /// Replaces each `<image>` by the placeholder tokens of its picture: grids[i] = (rows, cols), (0, 0) for a picture that is not split.
    pub fn expand(&self, text: &str, grids: &[(usize, usize)]) -> Result<String> {
        todo!()
    }

    /// Ids of a text; special tokens written in it are recognised; none is added unless tokenizer.json's post-processor does (`special`).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        todo!()
    }

    /// Text of ids, without special tokens unless `special`.
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<String> {
        todo!()
    }
}
