//! Autoregressive decoding of a ragged batch. What a request yields does not depend on what else is in the batch.

use std::collections::HashMap;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::models::decode::{Decoder, Step};
use crate::models::image::{Rgb, Tiles};
use crate::models::prompt::Message;
use crate::models::rope::Position;
use crate::models::text::KvCache;
use crate::models::vlm::{Prompt, Vlm};
use crate::ops::attention::Span;
use crate::ops::embedding;
use crate::ops::sample::{self, Draw, Sampling};
use crate::random;
use crate::tensor::{Indices, Tensor};

/// Prompt tokens that go through the text tower in one pass: bounds the memory of its activations.
const TOKENS_PER_PASS: usize = 8 * 1024;
/// Main memory for keys and values; requests that do not fit together are decoded one group after the other.
const CACHE_BYTES: usize = 2 << 30;

#[derive(Clone)]
pub struct Request {
    pub messages: Vec<Message>,
    /// One for each `Content::Image`, in order. The same `Arc` in several requests of a batch goes through the vision tower once.
    pub images: Vec<Arc<Rgb>>,
    /// The same as tiles, or empty: see `Vlm::prepare`.
    pub tiles: Vec<Arc<Tiles>>,
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
    /// The model ended it (an end token, not in `ids`); else max_new_tokens did.
    pub ended: bool,
}

/// A request as the model takes it.
struct Prepared<'a> {
    ids: Vec<u32>,
    positions: Vec<Position>,
    /// Where the first new token will be.
    next: u32,
    features: Vec<&'a Tensor>,
    max_new_tokens: usize,
}

/// One completion under way.
struct Draft {
    request: usize,
    sequence: usize,
    ids: Vec<u32>,
    ended: bool,
    rng: ChaCha8Rng,
}

/// Tiles of each different picture of a batch, and which of them each request has.
type Unique = (Vec<Arc<Tiles>>, Vec<Vec<usize>>);

impl Vlm {
    /// Cuts the pictures of a batch into tiles ahead of `generate`, which does it otherwise: on another thread, while an earlier batch is
    /// being answered.
    pub fn prepare(&self, requests: &mut [Request]) -> Result<()> {
        let (tiles, index) = self.unique_tiles(requests)?;
        for (request, pictures) in requests.iter_mut().zip(index) {
            request.tiles = pictures.into_iter().map(|i| Arc::clone(&tiles[i])).collect();
        }
        Ok(())
    }

    /// Completions of a batch, `samples` of them a request, in the order of the requests.
    pub fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>> {
        if requests.iter().any(|r| r.samples == 0) {
            return Err(Error::Usage("a request for 0 samples, expected 1 or more".into()));
        }
        let (tiles, index) = self.unique_tiles(requests)?;
        let features = self.features(&tiles.iter().map(Arc::as_ref).collect::<Vec<_>>())?;
        let mut prepared = Vec::with_capacity(requests.len());
        for (request, pictures) in requests.iter().zip(&index) {
            let grids: Vec<_> = pictures.iter().map(|&i| (tiles[i].rows, tiles[i].cols)).collect();
            let ids = self.encode(&request.messages, &grids, true)?;
            let room = self.config.text.max_positions.saturating_sub(ids.len());
            if ids.is_empty() || (room == 0 && request.max_new_tokens > 0) {
                return Err(Error::Usage(format!(
                    "a prompt of {} tokens, expected 1 to {} (max_position_embeddings less one)",
                    ids.len(),
                    self.config.text.max_positions.saturating_sub(1)
                )));
            }
            let (positions, next) = self.positions(&ids, &grids)?;
            prepared.push(Prepared {
                ids,
                positions,
                next,
                features: pictures.iter().map(|&i| &features[i]).collect(),
                max_new_tokens: request.max_new_tokens.min(room),
            });
        }
        let mut done = Vec::with_capacity(requests.len());
        let mut start = 0;
        while start < requests.len() {
            let count = self.group(&requests[start..], &prepared[start..])?;
            let end = start + count;
            done.extend(self.decode_group(&requests[start..end], &prepared[start..end])?);
            start = end;
        }
        Ok(done)
    }

    fn unique_tiles(&self, requests: &[Request]) -> Result<Unique> {
        let mut seen: Vec<(&Arc<Rgb>, Option<&Arc<Tiles>>)> = Vec::new();
        let mut place = HashMap::new();
        let mut index = Vec::with_capacity(requests.len());
        for request in requests {
            let one = request.images.iter().enumerate().map(|(i, image)| {
                *place.entry(Arc::as_ptr(image)).or_insert_with(|| {
                    seen.push((image, request.tiles.get(i)));
                    seen.len() - 1
                })
            });
            index.push(one.collect());
        }
        let cut = |(image, tiles): (&Arc<Rgb>, Option<&Arc<Tiles>>)| match tiles {
            Some(tiles) => Ok(Arc::clone(tiles)),
            None => self.vision()?.images.process(image).map(Arc::new),
        };
        let tiles = seen.into_par_iter().map(cut).collect::<Result<_>>()?;
        Ok((tiles, index))
    }

    /// How many of the first requests fit into the cache together; at least one.
    fn group(&self, requests: &[Request], prepared: &[Prepared]) -> Result<usize> {
        let t = &self.config.text;
        let (element, room) = match self.text.gpu() {
            None => (size_of::<f32>(), CACHE_BYTES),
            // The other half is for activations.
            Some(gpu) => (self.text.dtype().size(), gpu.free_memory()? / 2),
        };
        let row_bytes = t.layers * 2 * t.kv_heads * t.head_size * element;
        let mut bytes = 0;
        let fits = requests.iter().zip(prepared).take_while(|(r, p)| {
            bytes += r.samples * (p.ids.len() + p.max_new_tokens) * row_bytes;
            bytes <= room
        });
        Ok(fits.count().max(1))
    }

    fn decode_group(&self, requests: &[Request], prepared: &[Prepared]) -> Result<Vec<Vec<Completion>>> {
        let copies: Vec<usize> = requests.iter().map(|r| r.samples).collect();
        let mut session = Session::new(self, prepared, &copies)?;
        let first = session.prefill(prepared)?;
        let mut drafts = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            for s in 0..request.samples {
                let rng = random::stream(request.seed, &[s as u64]);
                drafts.push(Draft { request: i, sequence: drafts.len(), ids: vec![], ended: false, rng });
            }
        }
        // Rows of `logits` belong to drafts[active[row]]; at first all samples of a request read its one row.
        let mut active: Vec<usize> = (0..drafts.len()).collect();
        let mut rows: Vec<u32> = drafts.iter().map(|d| d.request as u32).collect();
        let mut logits = first;
        loop {
            // Drafts that want no token at all are active the first time only.
            let wanting = |&(&d, _): &(&usize, &u32)| prepared[drafts[d].request].max_new_tokens > 0;
            let (some, their_rows): (Vec<usize>, Vec<u32>) = active.iter().zip(&rows).filter(wanting).unzip();
            self.extend(&mut drafts, &some, requests, &logits, &their_rows.into())?;
            active.retain(|&d| {
                !drafts[d].ended && drafts[d].ids.len() < prepared[drafts[d].request].max_new_tokens
            });
            if active.is_empty() {
                break;
            }
            let last = |d: &usize| drafts[*d].ids.last().copied().unwrap_or_default();
            let tokens: Vec<u32> = active.iter().map(last).collect();
            let sequences: Vec<usize> = active.iter().map(|&d| drafts[d].sequence).collect();
            logits = session.step(&sequences, &tokens)?;
            rows = (0..active.len() as u32).collect();
        }
        self.finish(requests, drafts)
    }

    /// Chooses the next token of each draft named by `active`, the i-th from row `rows[i]` of the logits.
    fn extend(
        &self,
        drafts: &mut [Draft],
        active: &[usize],
        requests: &[Request],
        logits: &Tensor,
        rows: &Indices,
    ) -> Result<()> {
        let draw = |&d: &usize| {
            let draft = &mut drafts[d];
            Draw { sampling: requests[draft.request].sampling, uniform: random::uniform(&mut draft.rng) }
        };
        let draws: Vec<Draw> = active.iter().map(draw).collect();
        let tokens = sample::draw_rows(logits, rows, &draws)?;
        for (&d, token) in active.iter().zip(tokens) {
            let draft = &mut drafts[d];
            draft.ended = self.config.eos_token_ids.contains(&token);
            if !draft.ended {
                draft.ids.push(token);
            }
        }
        Ok(())
    }

    fn finish(&self, requests: &[Request], drafts: Vec<Draft>) -> Result<Vec<Vec<Completion>>> {
        let mut out: Vec<Vec<Completion>> = requests.iter().map(|_| Vec::new()).collect();
        for draft in drafts {
            let text = self.prompter.decode(&draft.ids, false)?;
            out[draft.request].push(Completion { ids: draft.ids, text, ended: draft.ended });
        }
        Ok(out)
    }
}

/// Sequences with their keys and values. Each owns a range of cache rows, long enough for its prompt and all new tokens.
struct Session<'a> {
    vlm: &'a Vlm,
    cache: KvCache,
    decoder: Decoder,
    sequences: Vec<Rows>,
    copies: Vec<usize>,
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
    fn new(vlm: &'a Vlm, prompts: &[Prepared], copies: &[usize]) -> Result<Self> {
        let mut sequences = Vec::new();
        let mut start = 0;
        for (prompt, &n) in prompts.iter().zip(copies) {
            for _ in 0..n {
                sequences.push(Rows { start, len: 0, next: prompt.next });
                start += prompt.ids.len() + prompt.max_new_tokens;
            }
        }
        Ok(Session {
            vlm,
            cache: vlm.text.cache(start)?,
            decoder: Decoder::default(),
            sequences,
            copies: copies.to_vec(),
        })
    }

    /// Runs all prompts; logits of each one's last token, [prompts, V].
    fn prefill(&mut self, prompts: &[Prepared]) -> Result<Tensor> {
        let mut logits = Vec::new();
        let (mut done, mut sequence) = (0, 0);
        while done < prompts.len() {
            let mut tokens = 0;
            let fits = prompts[done..].iter().take_while(|p| {
                tokens += p.ids.len();
                tokens <= TOKENS_PER_PASS
            });
            let count = fits.count().max(1);
            let now = done..done + count;
            let copies = self.copies[now.clone()].to_vec();
            logits.push(self.prefill_pass(&prompts[now], &copies, &mut sequence)?);
            done += count;
        }
        Tensor::concat(&logits.iter().collect::<Vec<_>>())
    }

    fn prefill_pass(
        &mut self,
        prompts: &[Prepared],
        copies: &[usize],
        sequence: &mut usize,
    ) -> Result<Tensor> {
        let (mut positions, mut rows, mut spans, mut last) = (vec![], vec![], vec![], vec![]);
        let mut first = *sequence;
        for (prompt, &n) in prompts.iter().zip(copies) {
            let (len, start) = (prompt.ids.len(), self.sequences.get(first).map_or(0, |s| s.start));
            spans.push(Span { q_start: rows.len(), q_len: len, k_start: start, k_len: len });
            positions.extend_from_slice(&prompt.positions);
            rows.extend((start..start + len).map(|r| r as u32));
            last.push(rows.len() as u32 - 1);
            first += n;
        }
        let packed: Vec<Prompt> =
            prompts.iter().map(|p| Prompt { ids: &p.ids, features: p.features.clone() }).collect();
        let x = self.vlm.embed(&packed)?;
        let x = self.vlm.text.forward_cached(x, &positions, &rows.into(), &spans.into(), &mut self.cache)?;
        for (prompt, &n) in prompts.iter().zip(copies) {
            let len = prompt.ids.len();
            for i in 0..n {
                let to = self.sequences[*sequence + i].start;
                if i > 0 {
                    self.cache.copy_rows(self.sequences[*sequence].start, to, len)?;
                }
                self.sequences[*sequence + i].len = len;
            }
            *sequence += n;
        }
        self.logits_of(&x, &last.into())
    }

    /// Appends one token to each of `sequences`; logits after it, [sequences, V].
    fn step(&mut self, sequences: &[usize], tokens: &[u32]) -> Result<Tensor> {
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
        Ok(self.vlm.text.logits(picked, crate::models::linear::Pass::Infer)?.0)
    }
}
