//! Sequences under way: their keys and values, prompts, decode steps. What two prompts begin with, a picture mostly, is computed once.

use std::collections::HashMap;

use crate::error::Result;
use crate::models::decode::{Decoder, Step};
use crate::models::linear::Pass;
use crate::models::rope::Position;
use crate::models::text::KvCache;
use crate::models::vlm::{Prompt, Vlm};
use crate::ops::attention::Span;
use crate::ops::embedding;
use crate::tensor::{Indices, Tensor};

/// Prompt tokens that go through the text tower in one pass: bounds the memory of its activations.
const TOKENS_PER_PASS: usize = 8 * 1024;

/// A request as the model takes it.
pub(super) struct Prepared<'a> {
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
    pub features: Vec<&'a Tensor>,
    pub max_new_tokens: usize,
}

impl Prepared<'_> {
    pub fn draft(&self) -> &[u32] {
        &self.ids[self.prompt..]
    }

    /// Of the cache, that a sequence may take.
    pub fn rows(&self) -> usize {
        self.prompt + self.max_new_tokens.max(self.draft().len())
    }

    /// How many tokens it has in common with the beginning of `other`, whose pictures are the same: all of the pictures, or none. At least one token
    /// of the prompt is left, for what comes next to be known.
    fn shared(&self, other: &Prepared) -> usize {
        let ours = &self.ids[..self.prompt - 1];
        let common = ours.iter().zip(&other.ids[..other.prompt]).take_while(|(a, b)| a == b).count();
        if common < self.pictures { 0 } else { common }
    }
}

/// What a pass over prompts says of the next tokens.
pub(super) struct Prefilled {
    /// After the last token of each prompt and after each of its draft, [., V].
    pub logits: Tensor,
    /// The first row of each prompt.
    pub first: Vec<usize>,
}

/// Each sequence owns a range of cache rows, long enough for its prompt and all new tokens.
pub(super) struct Session<'a> {
    vlm: &'a Vlm,
    cache: KvCache,
    decoder: Decoder,
    sequences: Vec<Rows>,
    /// The first sequence of each prompt; the others of it follow.
    owned: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Rows {
    start: usize,
    len: usize,
    /// Where the next token will be.
    next: u32,
}

impl<'a> Session<'a> {
    /// `copies[i]` sequences for prompt i, next to each other.
    pub fn new(vlm: &'a Vlm, prompts: &[Prepared], copies: &[usize]) -> Result<Self> {
        let (mut sequences, mut owned) = (Vec::new(), Vec::new());
        let mut start = 0;
        for (prompt, &n) in prompts.iter().zip(copies) {
            owned.push(sequences.len());
            for _ in 0..n {
                sequences.push(Rows { start, len: 0, next: prompt.next });
                start += prompt.rows();
            }
        }
        let cache = vlm.text.cache(start)?;
        Ok(Session { vlm, cache, decoder: Decoder::default(), sequences, owned })
    }

    /// Runs all prompts with their drafts, which are not yet part of the sequences.
    pub fn prefill(&mut self, prompts: &[Prepared]) -> Result<Prefilled> {
        let shared = shared(prompts);
        let (followers, owners): (Vec<usize>, Vec<usize>) =
            (0..prompts.len()).partition(|&i| shared[i].is_some());
        let mut prefilled = Prefilled { logits: Tensor::zeros(&[0]), first: vec![0; prompts.len()] };
        let (mut logits, mut rows) = (Vec::new(), 0);
        for group in [owners, followers] {
            for &i in &group {
                if let Some((owner, len)) = shared[i] {
                    let [from, to] = [owner, i].map(|p| self.sequences[self.owned[p]].start);
                    self.cache.copy_rows(from, to, len)?;
                }
                prefilled.first[i] = rows;
                rows += 1 + prompts[i].draft().len();
            }
            let todo = |i: usize| prompts[i].ids.len() - shared[i].map_or(0, |(_, len)| len);
            let mut rest = &group[..];
            while !rest.is_empty() {
                let mut tokens = 0;
                let fits = rest.iter().take_while(|&&i| {
                    tokens += todo(i);
                    tokens <= TOKENS_PER_PASS
                });
                let (now, later) = rest.split_at(fits.count().max(1));
                logits.push(self.pass(prompts, now, &shared)?);
                rest = later;
            }
        }
        prefilled.logits = Tensor::concat(&logits.iter().collect::<Vec<_>>())?;
        self.copy(prompts)?;
        Ok(prefilled)
    }

    /// The prompts of `now`, from where the shared part ends.
    fn pass(
        &mut self,
        prompts: &[Prepared],
        now: &[usize],
        shared: &[Option<(usize, usize)>],
    ) -> Result<Tensor> {
        let (mut positions, mut rows, mut spans, mut last) = (vec![], vec![], vec![], vec![]);
        let mut packed = Vec::new();
        for &i in now {
            let prompt = &prompts[i];
            let (done, features) = match shared[i] {
                Some((_, len)) => (len, &[][..]),
                None => (0, &prompt.features[..]),
            };
            let (len, start) = (prompt.ids.len(), self.sequences[self.owned[i]].start);
            spans.push(Span { q_start: rows.len(), q_len: len - done, k_start: start, k_len: len });
            positions.extend_from_slice(&prompt.positions[done..]);
            rows.extend((start + done..start + len).map(|r| r as u32));
            last.extend((rows.len() - 1 - prompt.draft().len()..rows.len()).map(|r| r as u32));
            packed.push(Prompt { ids: &prompt.ids[done..], features: features.to_vec() });
        }
        let x = self.vlm.embed(&packed)?;
        let x = self.vlm.text.forward_cached(x, &positions, &rows.into(), &spans.into(), &mut self.cache)?;
        self.logits_of(&x, &last.into())
    }

    /// Keys and values of each prompt to all of its sequences.
    fn copy(&mut self, prompts: &[Prepared]) -> Result<()> {
        for (i, prompt) in prompts.iter().enumerate() {
            let first = self.owned[i];
            let end = self.owned.get(i + 1).copied().unwrap_or(self.sequences.len());
            for s in first..end {
                if s > first {
                    let [from, to] = [first, s].map(|s| self.sequences[s].start);
                    self.cache.copy_rows(from, to, prompt.ids.len())?;
                }
                self.sequences[s].len = prompt.prompt;
            }
        }
        Ok(())
    }

    /// Makes the first `accepted` tokens of its draft part of a sequence.
    pub fn take(&mut self, sequence: usize, accepted: usize) {
        let sequence = &mut self.sequences[sequence];
        sequence.len += accepted;
        sequence.next += accepted as u32;
    }

    /// Appends one token to each of `sequences`; logits after it, [sequences, V].
    pub fn step(&mut self, sequences: &[usize], tokens: &[u32]) -> Result<Tensor> {
        let mut step = Step { ids: tokens.to_vec(), ..Step::default() };
        for (i, &s) in sequences.iter().enumerate() {
            let sequence = &mut self.sequences[s];
            step.positions.push([sequence.next; 3]);
            sequence.next += 1;
            step.rows.push((sequence.start + sequence.len) as u32);
            sequence.len += 1;
            step.spans.push(Span { q_start: i, q_len: 1, k_start: sequence.start, k_len: sequence.len });
        }
        self.decoder.step(&self.vlm.text, step, &mut self.cache)
    }

    fn logits_of(&self, x: &Tensor, rows: &Indices) -> Result<Tensor> {
        let mut picked = x.like(&[rows.len(), x.cols()])?;
        embedding::forward(&mut picked, rows, x)?;
        Ok(self.vlm.text.logits(picked, Pass::Infer)?.0)
    }
}

/// For each prompt the earlier one that begins alike, and how far: the first with the same pictures, which shares nothing itself.
fn shared(prompts: &[Prepared]) -> Vec<Option<(usize, usize)>> {
    let mut first: HashMap<Vec<*const Tensor>, usize> = HashMap::new();
    let one = |(i, prompt): (usize, &Prepared)| {
        let pictures = prompt.features.iter().map(|&f| std::ptr::from_ref(f)).collect();
        let owner = *first.entry(pictures).or_insert(i);
        let len = if owner == i { 0 } else { prompt.shared(&prompts[owner]) };
        (len > 0).then_some((owner, len))
    };
    prompts.iter().enumerate().map(one).collect()
}
