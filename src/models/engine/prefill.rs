//! Prompts through the text tower: many in a pass, a long one over several passes. What two of them begin with, a picture mostly, is computed once.

use std::ops::Range;

use super::Engine;
use crate::error::Result;
use crate::models::generate::Request;
use crate::models::linear::Pass;
use crate::models::text::{self, Text};
use crate::models::vlm::{Prompt, Vlm};
use crate::ops::attention::{PagedSpans, Span};
use crate::ops::embedding;
use crate::ops::kv_cache::PAGE;
use crate::ops::sample::{self, Draw, Sampling};
use crate::tensor::{Indices, Tensor};

use super::entry::{Entry, Prepared};

/// Tokens of an entry's prompt and draft that a pass takes.
struct Piece {
    entry: usize,
    tokens: Range<usize>,
}

/// What the model makes of a draft.
#[derive(Clone, Copy, Default)]
pub(super) struct Verdict {
    /// Tokens that it would have written itself.
    accepted: usize,
    logprob: Option<f64>,
}

impl Engine<'_> {
    /// One pass over what is left of the prompts. Returns whether there was anything to do.
    pub(super) fn prefill(&mut self) -> Result<bool> {
        let pieces = self.pieces();
        if pieces.is_empty() {
            return Ok(false);
        }
        let (mut positions, mut rows) = (Vec::new(), Vec::new());
        let (mut spans, mut tables, mut parts, mut first) = (vec![], vec![], vec![], vec![]);
        for piece in &pieces {
            let entry = &mut self.entries[piece.entry];
            let Range { start: from, end } = piece.tokens;
            let (table, len, before) = (&entry.tables[0], end - from, rows.len());
            spans.push(Span { q_start: before, q_len: len, k_start: tables.len(), k_len: end });
            tables.extend_from_slice(&table[..end.div_ceil(PAGE)]);
            positions.extend_from_slice(&entry.prompt.positions[piece.tokens.clone()]);
            rows.extend(piece.tokens.clone().map(|token| text::row(table, token)));
            if end == entry.prompt.ids.len() {
                let draft = entry.prompt.draft().len();
                first.push((piece.entry, (before + len - 1 - draft) as u32..(before + len) as u32));
            }
            parts.push(embed(self.vlm, entry, piece.tokens.clone())?);
        }
        let x = joined(parts)?;
        let (text, spans) = (&self.vlm.text, PagedSpans::new(spans, tables));
        let x = text.forward_cached(x, &positions, &rows.into(), &spans, self.cache.get()?)?;
        for piece in &pieces {
            let entry = &mut self.entries[piece.entry];
            entry.done = piece.tokens.end;
            if !entry.wants_pictures() {
                (entry.features, entry.embedded) = (Vec::new(), None);
            }
            self.spent.prompt_tokens += piece.tokens.len();
        }
        // Before an entry that others go on from can be finished.
        self.inherit()?;
        let mut first = &first[..];
        while !first.is_empty() {
            let (now, later) = first.split_at(together(first, self.cache.room.logit_rows()));
            let rows = now.iter().flat_map(|(_, rows)| rows.clone()).collect();
            self.begin(&pass_logits(text, &x, rows)?, now)?;
            first = later;
        }
        Ok(true)
    }

    /// What the next pass takes, in the order of the entries: so many tokens, which see so many keys.
    fn pieces(&self) -> Vec<Piece> {
        let (mut pieces, mut tokens, most) = (Vec::new(), 0, self.limits.pass_tokens);
        let (mut keys, most_keys) = (0, self.cache.room.keys());
        for (i, entry) in self.entries.iter().enumerate().filter(|(_, e)| e.is_new() && e.from.is_none()) {
            let end = piece_end(&entry.prompt, entry.done, most);
            tokens += end - entry.done;
            keys += end.next_multiple_of(PAGE);
            if (tokens > most || keys > most_keys) && !pieces.is_empty() {
                break;
            }
            pieces.push(Piece { entry: i, tokens: entry.done..end });
        }
        pieces
    }

    /// Starts the completions of the entries of `first`: as many rows of the logits are theirs, one after the other, as stand beside them.
    fn begin(&mut self, logits: &Tensor, first: &[(usize, Range<u32>)]) -> Result<()> {
        let starts = first.iter().scan(0, |next, (e, rows)| {
            let start = *next;
            *next += rows.len();
            Some((*e, start))
        });
        let first: Vec<(usize, usize)> = starts.collect();
        let prompts: Vec<_> = first.iter().map(|&(e, row)| (&self.entries[e].prompt, row)).collect();
        let verdicts = verify(logits, &prompts)?;
        let (mut drafts, mut rows) = (Vec::new(), Vec::new());
        let ends = &self.vlm.config.eos_token_ids;
        for (&(e, row), verdict) in first.iter().zip(verdicts) {
            let entry = &mut self.entries[e];
            let accepted = match is_greedy(&entry.request) {
                true => verdict.accepted.min(entry.prompt.max_new_tokens),
                false => 0,
            };
            entry.logprob = verdict.logprob;
            entry.begin(accepted, |id| ends.contains(id));
            // What is behind the prompt's full pages.
            let rest = entry.prompt.prompt / PAGE * PAGE..entry.prompt.ids.len();
            for c in 0..entry.completions.len() {
                if c > 0 {
                    self.cache.get()?.copy(&entry.tables[0], &entry.tables[c], rest.clone())?;
                }
                if !entry.is_complete(c) {
                    drafts.push((e, c));
                    rows.push((row + accepted) as u32);
                }
            }
        }
        self.extend(&drafts, logits, &rows.into())
    }
}

/// How many of these have at most so many rows together; one at least.
fn together(first: &[(usize, Range<u32>)], most: usize) -> usize {
    let mut rows = 0;
    let fit = first.iter().take_while(|(_, range)| {
        rows += range.len();
        rows <= most
    });
    fit.count().max(1)
}

/// One after the other. Parts are dropped when they are copied.
fn joined(mut parts: Vec<Tensor>) -> Result<Tensor> {
    match parts.pop() {
        Some(only) if parts.is_empty() => Ok(only),
        last => Tensor::concat(&parts.iter().chain(&last).collect::<Vec<_>>()),
    }
}

/// Logits after these rows of a pass, [rows, V].
pub(super) fn pass_logits(text: &Text, x: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    let rows = Indices::from(rows);
    let mut picked = x.like(&[rows.len(), x.cols()])?;
    embedding::forward(&mut picked, &rows, x)?;
    Ok(text.logits(picked, Pass::Infer)?.0)
}

fn is_greedy(request: &Request) -> bool {
    request.sampling.temperature == 0.0
}

/// Where a piece from token `done` on ends: with the prompt and its draft, or at a multiple of `most`, whatever else is in the pass; but not among the
/// tokens after which logits are wanted, which go through the model together. It has two tokens at least: attention takes one alone for a decode
/// step, whose sums have another order.
fn piece_end(prompt: &Prepared, done: usize, most: usize) -> usize {
    let (len, tail, next) =
        (prompt.ids.len(), prompt.prompt.saturating_sub(2), ((done + 1) / most + 1) * most);
    if len <= next || done + 2 > tail { len } else { tail.min(next) }
}

/// Embeddings of some tokens of a prompt, [T, C].
fn embed(vlm: &Vlm, entry: &mut Entry, tokens: Range<usize>) -> Result<Tensor> {
    let ids = &entry.prompt.ids;
    if tokens.start >= entry.prompt.pictures {
        return vlm.embed(&[Prompt { ids: &ids[tokens], features: Vec::new() }]);
    }
    let embedded = match entry.embedded.take() {
        Some(embedded) => embedded,
        None => vlm.embed(&[Prompt { ids, features: entry.features.iter().map(AsRef::as_ref).collect() }])?,
    };
    let part = embedded.slice(tokens)?;
    entry.embedded = Some(embedded);
    Ok(part)
}

/// One for each prompt: how far its draft is what greedy decoding writes, and how likely the whole of it is. A prompt's logits begin at the row
/// beside it.
pub(super) fn verify(logits: &Tensor, prompts: &[(&Prepared, usize)]) -> Result<Vec<Verdict>> {
    let mut verdicts = vec![Verdict::default(); prompts.len()];
    if prompts.iter().all(|(p, _)| p.draft().is_empty()) {
        return Ok(verdicts);
    }
    // Row by row the token that the draft has next; behind it, any.
    let mut next = vec![0; logits.rows()];
    for (p, first) in prompts {
        next[*first..first + p.draft().len()].copy_from_slice(p.draft());
    }
    let greedy = Draw { sampling: Sampling { temperature: 0.0, top_p: 1.0 }, uniform: 0.0 };
    let all: Indices = (0..next.len() as u32).collect();
    let best = sample::draw_rows(logits, &all, &vec![greedy; next.len()])?;
    let logprobs = sample::log_probability_rows(logits, &next.into())?;
    for ((p, first), verdict) in prompts.iter().zip(&mut verdicts) {
        let draft = p.draft();
        verdict.accepted = draft.iter().zip(&best[*first..]).take_while(|(a, b)| a == b).count();
        let sum: f64 = logprobs[*first..first + draft.len()].iter().sum();
        verdict.logprob = (!draft.is_empty()).then(|| sum / draft.len() as f64);
    }
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_is_cut_before_the_tokens_whose_logits_are_wanted() {
        let prompt = |len, prompt| Prepared {
            ids: vec![0; len],
            prompt,
            pictures: 0,
            positions: Vec::new(),
            next: 0,
            max_new_tokens: 1,
        };
        let cut = |p: &Prepared, from: usize, most| {
            let mut ends = vec![from];
            while ends[ends.len() - 1] < p.ids.len() {
                ends.push(piece_end(p, ends[ends.len() - 1], most));
            }
            ends
        };
        assert_eq!(cut(&prompt(10, 10), 0, 10), [0, 10]);
        assert_eq!(cut(&prompt(10, 10), 0, 4), [0, 4, 8, 10]);
        // From a shared beginning on, at the same places, but never one token alone.
        assert_eq!(cut(&prompt(10, 10), 2, 4), [2, 4, 8, 10]);
        assert_eq!(cut(&prompt(10, 10), 3, 4), [3, 8, 10]);
        assert_eq!(cut(&prompt(9, 9), 0, 4), [0, 4, 7, 9]);
        assert_eq!(cut(&prompt(5, 5), 0, 1), [0, 2, 5]);
        // A draft of three: its tokens and those before it stay together, more than a pass has room for or not.
        assert_eq!(cut(&prompt(10, 7), 0, 4), [0, 4, 10]);
        assert_eq!(cut(&prompt(10, 7), 0, 3), [0, 3, 5, 10]);
        assert_eq!(cut(&prompt(2, 1), 0, 1), [0, 2]);
    }
}
