//! A request under way.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use crate::models::generate::Request;
use crate::models::rope::Position;
use crate::random;
use crate::tensor::Tensor;

/// A request as the model takes it.
pub(in crate::models) struct Prepared {
    /// The prompt, and the draft behind it.
    pub ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens up to the last one of a picture.
    pub pictures: usize,
    /// Of all ids.
    pub positions: Vec<Position>,
    /// Where the first new token will be.
    pub next: u32,
    pub max_new_tokens: usize,
}

impl Prepared {
    pub fn draft(&self) -> &[u32] {
        &self.ids[self.prompt..]
    }

    /// Rows of the cache that a completion may take.
    pub fn rows(&self) -> usize {
        self.prompt + self.max_new_tokens.max(self.draft().len())
    }

    /// The draft only saves time.
    pub fn forget_draft(&mut self) {
        self.ids.truncate(self.prompt);
        self.positions.truncate(self.prompt);
    }

    pub fn prompt_ids(&self) -> &[u32] {
        &self.ids[..self.prompt]
    }

    /// How many tokens it has in common with the beginning of another prompt, whose pictures are the same: all of the pictures, or none. Two
    /// tokens are left, for what comes next to be known, and not as a decode step knows it (see `piece_end`).
    pub fn shared(&self, other: &[u32]) -> usize {
        let ours = &self.ids[..self.prompt.saturating_sub(2)];
        let common = ours.iter().zip(other).take_while(|(a, b)| a == b).count();
        if common < self.pictures { 0 } else { common }
    }
}

pub(super) struct Entry {
    /// Among all requests, in the order in which they came.
    pub index: usize,
    pub request: Request,
    pub prompt: Prepared,
    /// Cache pages of each completion. The prompt is in those of the first.
    pub tables: Vec<Vec<u32>>,
    /// Tokens of `prompt.ids` whose keys and values are in the cache.
    pub done: usize,
    /// The index of an entry that begins alike, and how many tokens are to come from there.
    pub from: Option<(usize, usize)>,
    /// Features of its pictures, one after the other.
    pub features: Vec<Arc<Tensor>>, // [F, C] each
    /// Of all ids, where a pass takes only some of those with pictures: [., C].
    pub embedded: Option<Tensor>,
    pub logprob: Option<f64>,
    /// One a sample, from when the prompt is done.
    pub completions: Vec<Draft>,
}

/// One completion under way.
pub(super) struct Draft {
    /// Tokens that are in the cache.
    pub len: usize,
    /// Where the next token will be.
    pub next: u32,
    pub ids: Vec<u32>,
    pub ended: bool,
    pub rng: ChaCha8Rng,
}

impl Entry {
    pub fn new(
        index: usize,
        request: Request,
        prompt: Prepared,
        tables: Vec<Vec<u32>>,
        from: Option<(usize, usize)>,
    ) -> Entry {
        let (features, completions) = (Vec::new(), Vec::new());
        Entry {
            index,
            request,
            prompt,
            tables,
            done: 0,
            from,
            features,
            embedded: None,
            logprob: None,
            completions,
        }
    }

    /// Whether features of its pictures have still to go through the model.
    pub fn wants_pictures(&self) -> bool {
        self.done < self.prompt.pictures
    }

    /// Whether its prompt has still to go through the model.
    pub fn is_new(&self) -> bool {
        self.done < self.prompt.ids.len()
    }

    pub fn is_finished(&self) -> bool {
        !self.is_new() && (0..self.completions.len()).all(|c| self.is_complete(c))
    }

    pub fn is_complete(&self, completion: usize) -> bool {
        let completion = &self.completions[completion];
        completion.ended || completion.ids.len() >= self.prompt.max_new_tokens
    }

    /// The completions, when the prompt is done; each begins with the first `accepted` tokens of the draft, or with what comes before an end
    /// token among them.
    pub fn begin(&mut self, accepted: usize, is_end: impl Fn(&u32) -> bool) {
        let taken = &self.prompt.draft()[..accepted];
        let end = taken.iter().position(is_end);
        let ids = taken[..end.unwrap_or(accepted)].to_vec();
        let one = |sample: usize| Draft {
            len: self.prompt.prompt + accepted,
            next: self.prompt.next + accepted as u32,
            ids: ids.clone(),
            ended: end.is_some(),
            rng: random::stream(self.request.seed, &[sample as u64]),
        };
        self.completions = (0..self.request.samples).map(one).collect();
    }
}
