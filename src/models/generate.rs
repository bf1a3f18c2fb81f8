//! Autoregressive decoding of a ragged batch. What a request yields does not depend on what else is in the batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::models::image::{Rgb, Tiles};
use crate::models::prompt::Message;
use crate::models::rope;
use crate::models::session::{Prefilled, Prepared, Session};
use crate::models::vlm::Vlm;
use crate::ops::sample::{self, Draw, Sampling};
use crate::random;
use crate::tensor::{Indices, Tensor};

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
    /// What the model might answer. It goes through the model with the prompt, so that a greedy answer that begins alike costs no steps for what
    /// is alike, and is the same as without; and `Completion::draft_logprob` says how likely it is.
    pub draft: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub ids: Vec<u32>,
    /// Without special tokens.
    pub text: String,
    /// The model ended it (an end token, not in `ids`); else max_new_tokens did.
    pub ended: bool,
    /// Mean log-probability of the request's draft and the end of the turn behind it; none without a draft, or where it does not fit.
    pub draft_logprob: Option<f64>,
}

/// What the model makes of a draft.
#[derive(Clone, Copy, Default)]
struct Verdict {
    /// Tokens that it would have written itself.
    accepted: usize,
    logprob: Option<f64>,
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
        self.generate_timed(requests).map(|(completions, _)| completions)
    }

    /// The same, and how long the steps took that followed the first tokens.
    pub fn generate_timed(&self, requests: &[Request]) -> Result<(Vec<Vec<Completion>>, Duration)> {
        match self.text.gpu() {
            Some(_) => self.answer(requests),
            // On a thread of the pool: a loop that begins elsewhere waits for two threads to wake, and a token has hundreds of them.
            None => rayon::scope(|_| self.answer(requests)),
        }
    }

    fn answer(&self, requests: &[Request]) -> Result<(Vec<Vec<Completion>>, Duration)> {
        if requests.iter().any(|r| r.samples == 0) {
            return Err(Error::Usage("a request for 0 samples, expected 1 or more".into()));
        }
        let (tiles, index) = self.unique_tiles(requests)?;
        let features = self.features(&tiles.iter().map(Arc::as_ref).collect::<Vec<_>>())?;
        let mut prepared = Vec::with_capacity(requests.len());
        for (request, pictures) in requests.iter().zip(&index) {
            let grids: Vec<_> = pictures.iter().map(|&i| (tiles[i].rows, tiles[i].cols)).collect();
            let features = pictures.iter().map(|&i| &features[i]).collect();
            prepared.push(self.prepared(request, &grids, features)?);
        }
        let (mut done, mut decoding) = (Vec::with_capacity(requests.len()), Duration::ZERO);
        let mut start = 0;
        while start < requests.len() {
            let count = self.group(&requests[start..], &prepared[start..])?;
            let end = start + count;
            let (completions, took) = self.decode_group(&requests[start..end], &prepared[start..end])?;
            done.extend(completions);
            decoding += took;
            start = end;
        }
        Ok((done, decoding))
    }

    fn prepared<'a>(
        &self,
        request: &Request,
        grids: &[(usize, usize)],
        features: Vec<&'a Tensor>,
    ) -> Result<Prepared<'a>> {
        let mut ids = self.encode(&request.messages, grids, true)?;
        let (prompt, most) = (ids.len(), self.config.text.max_positions);
        let room = most.saturating_sub(prompt);
        if ids.is_empty() || (room == 0 && request.max_new_tokens > 0) {
            return Err(Error::Usage(format!(
                "a prompt of {prompt} tokens, expected 1 to {} (max_position_embeddings less one)",
                most.saturating_sub(1)
            )));
        }
        if let Some(draft) = &request.draft {
            let (whole, start) = self.encode_answered(&request.messages, grids, draft)?;
            // Where the tokenizer merges across the seam the prompt is another one.
            if start == prompt && whole.len() <= most {
                ids = whole;
            }
        }
        let (mut positions, next) = self.positions(&ids[..prompt], grids)?;
        positions.extend(rope::line(next, ids.len() - prompt));
        let max_new_tokens = request.max_new_tokens.min(room);
        let pictures = self.picture_tokens(&ids[..prompt]).last().map_or(0, |&last| last as usize + 1);
        Ok(Prepared { ids, prompt, pictures, positions, next, features, max_new_tokens })
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
            bytes += r.samples * p.rows() * row_bytes;
            bytes <= room
        });
        Ok(fits.count().max(1))
    }

    fn decode_group(
        &self,
        requests: &[Request],
        prepared: &[Prepared],
    ) -> Result<(Vec<Vec<Completion>>, Duration)> {
        let copies: Vec<usize> = requests.iter().map(|r| r.samples).collect();
        let mut session = Session::new(self, prepared, &copies)?;
        let mut prefilled = session.prefill(prepared)?;
        let verdicts = verify(&prefilled, prepared)?;
        // Rows of `logits` belong to drafts[active[row]]; at first all samples of a request read one of its own.
        let (mut drafts, mut rows) = (Vec::new(), Vec::new());
        for (i, request) in requests.iter().enumerate() {
            let greedy = request.sampling.temperature == 0.0;
            let accepted = if greedy { verdicts[i].accepted.min(prepared[i].max_new_tokens) } else { 0 };
            for s in 0..request.samples {
                let rng = random::stream(request.seed, &[s as u64]);
                let mut ids = prepared[i].draft()[..accepted].to_vec();
                let end = ids.iter().position(|id| self.config.eos_token_ids.contains(id));
                ids.truncate(end.unwrap_or(accepted));
                session.take(drafts.len(), accepted);
                drafts.push(Draft { request: i, sequence: drafts.len(), ids, ended: end.is_some(), rng });
                rows.push((prefilled.first[i] + accepted) as u32);
            }
        }
        let unfinished = |d: &Draft| !d.ended && d.ids.len() < prepared[d.request].max_new_tokens;
        let mut active: Vec<usize> = (0..drafts.len()).filter(|&d| unfinished(&drafts[d])).collect();
        rows = active.iter().map(|&d| rows[d]).collect();
        let logits = &mut prefilled.logits;
        let mut began = None;
        while !active.is_empty() {
            self.extend(&mut drafts, &active, requests, logits, &rows.into())?;
            began.get_or_insert_with(Instant::now);
            active.retain(|&d| unfinished(&drafts[d]));
            if active.is_empty() {
                break;
            }
            let last = |d: &usize| drafts[*d].ids.last().copied().unwrap_or_default();
            let tokens: Vec<u32> = active.iter().map(last).collect();
            let sequences: Vec<usize> = active.iter().map(|&d| drafts[d].sequence).collect();
            *logits = session.step(&sequences, &tokens)?;
            rows = (0..active.len() as u32).collect();
        }
        let decoding = began.map_or(Duration::ZERO, |began| began.elapsed());
        Ok((self.finish(requests, drafts, &verdicts)?, decoding))
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

    fn finish(
        &self,
        requests: &[Request],
        drafts: Vec<Draft>,
        verdicts: &[Verdict],
    ) -> Result<Vec<Vec<Completion>>> {
        let mut out: Vec<Vec<Completion>> = requests.iter().map(|_| Vec::new()).collect();
        for draft in drafts {
            let text = self.prompter.decode(&draft.ids, false)?;
            let draft_logprob = verdicts[draft.request].logprob;
            out[draft.request].push(Completion { ids: draft.ids, text, ended: draft.ended, draft_logprob });
        }
        Ok(out)
    }
}

/// One for each prompt: how far its draft is what greedy decoding writes, and how likely the whole of it is.
fn verify(prefilled: &Prefilled, prepared: &[Prepared]) -> Result<Vec<Verdict>> {
    let mut verdicts = vec![Verdict::default(); prepared.len()];
    if prepared.iter().all(|p| p.draft().is_empty()) {
        return Ok(verdicts);
    }
    // Row by row the token that the draft has next; behind it, any.
    let mut next = vec![0; prefilled.logits.rows()];
    for (p, &first) in prepared.iter().zip(&prefilled.first) {
        next[first..first + p.draft().len()].copy_from_slice(p.draft());
    }
    let greedy = Draw { sampling: Sampling { temperature: 0.0, top_p: 1.0 }, uniform: 0.0 };
    let all: Indices = (0..next.len() as u32).collect();
    let best = sample::draw_rows(&prefilled.logits, &all, &vec![greedy; next.len()])?;
    let logprobs = sample::log_probability_rows(&prefilled.logits, &next.into())?;
    for ((p, &first), verdict) in prepared.iter().zip(&prefilled.first).zip(&mut verdicts) {
        let draft = p.draft();
        verdict.accepted = draft.iter().zip(&best[first..]).take_while(|(a, b)| a == b).count();
        let sum: f64 = logprobs[first..first + draft.len()].iter().sum();
        verdict.logprob = (!draft.is_empty()).then(|| sum / draft.len() as f64);
    }
    Ok(verdicts)
}
