//! Decode steps: one token more for each of a number of sequences. On a GPU the hundreds of launches of a step are kept as a graph and queued
//! again for the next one; only what they read (ids, rotations, where keys and values go, how many there are) changes.

use crate::error::{Error, Result};
use crate::models::linear::Pass;
use crate::models::rope::{Position, Rope};
use crate::models::text::{self, KvCache, Table, Text};
use crate::ops::attention::{self, PagedSpans, Span};
use crate::ops::kv_cache::PAGE;
use crate::tensor::{Graph, Indices, Tensor, forbids_graphs};

/// One token of each sequence.
#[derive(Default)]
pub(super) struct Step<'a> {
    pub ids: Vec<u32>,
    pub positions: Vec<Position>,
    /// Its cache pages, and how many tokens it has with this one.
    pub sequences: Vec<(&'a Table, usize)>,
}

impl<'a> Step<'a> {
    /// Fills up to `places` sequences, with such that nobody asked for: each has another token of `page`, which is nobody's.
    fn fill(&mut self, places: usize, page: &'a Table) {
        for len in 1..=places.saturating_sub(self.ids.len()) {
            self.ids.push(0);
            self.positions.push([0; 3]);
            self.sequences.push((page, len));
        }
    }

    /// Where the tokens' keys and values go in the cache.
    fn rows(&self) -> Vec<u32> {
        self.sequences.iter().map(|(table, len)| text::row(table, len - 1)).collect()
    }

    /// What the tokens see, and the tables of all sequences, each with `pages` entries: what is behind its end may be any page.
    fn spans(&self, pages: usize) -> (Vec<Span>, Vec<u32>) {
        let (mut spans, mut tables) = (Vec::new(), Vec::new());
        for (q_start, (table, k_len)) in self.sequences.iter().enumerate() {
            spans.push(Span { q_start, q_len: 1, k_start: tables.len(), k_len: *k_len });
            tables.extend_from_slice(&table[..pages.min(table.len())]);
            tables.resize((q_start + 1) * pages, 0);
        }
        (spans, tables)
    }
}

/// Runs steps; the last one's inputs and launches are kept for the next.
#[derive(Default)]
pub(super) struct Decoder {
    kept: Option<Kept>,
}

/// How many sequences a step on a GPU is made for: with a few more than there are its launches serve again when one has ended and before another
/// is let in. Up to seven, so that fewer than a page has rows.
fn places(sequences: usize) -> usize {
    if sequences == 1 { 1 } else { sequences.next_multiple_of(8) }
}

/// What the launches of a step read, and, from the second such step on, the launches.
struct Kept {
    ids: Indices,
    rope: Rope,
    rows: Indices,
    spans: PagedSpans,
    /// Keys of the longest span that these launches can serve.
    reach: usize,
    graph: Option<(Graph, Tensor)>,
}

impl Decoder {
    /// Logits after each token, [sequences or more, V]. The result of the last call may be overwritten.
    pub fn step(&mut self, text: &Text, step: Step, cache: &mut KvCache) -> Result<Tensor> {
        let longest = step.sequences.iter().map(|s| s.1).max().unwrap_or(0);
        let spare = [cache.spare];
        let mut step = step;
        if text.gpu().is_some() {
            step.fill(places(step.ids.len()), &spare);
        }
        let fits = |kept: &&mut Kept| kept.ids.len() == step.ids.len() && longest <= kept.reach;
        let Some(kept) = self.kept.as_mut().filter(fits) else {
            // The first step of its kind brings all it reads to the device, and the memory it needs into the arena.
            let kept = self.kept.insert(Kept::new(text, &step, longest)?);
            return kept.run(text, cache);
        };
        kept.set(text, &step)?;
        let Some(gpu) = text.gpu().filter(|_| !forbids_graphs()).cloned() else {
            return kept.run(text, cache);
        };
        if kept.graph.is_none() {
            let captured = Graph::capture(&gpu, || kept.run(text, cache))?;
            kept.graph = Some(captured);
        }
        match &kept.graph {
            Some((graph, logits)) => graph.replay().map(|()| logits.clone()),
            None => Err(Error::Failure("a decode step without its graph".into())),
        }
    }
}

impl Kept {
    fn new(text: &Text, step: &Step, longest: usize) -> Result<Kept> {
        let reach = attention::decode_reach(longest);
        let (spans, tables) = step.spans(reach.div_ceil(PAGE));
        Ok(Kept {
            ids: step.ids[..].into(),
            rope: text.rope(&step.positions)?,
            rows: step.rows().into(),
            spans: PagedSpans::new(spans, tables),
            reach,
            graph: None,
        })
    }

    /// Puts another step's inputs in the place of the last one's.
    fn set(&mut self, text: &Text, step: &Step) -> Result<()> {
        self.ids.set(step.ids.clone())?;
        self.rows.set(step.rows())?;
        let (spans, tables) = step.spans(self.reach.div_ceil(PAGE));
        self.spans.set(spans, tables)?;
        text.set_rope(&mut self.rope, &step.positions)
    }

    fn run(&self, text: &Text, cache: &mut KvCache) -> Result<Tensor> {
        let x = text.embed(&self.ids)?;
        let x = text.blocks_cached(x, &self.rope, &self.rows, &self.spans, cache)?;
        Ok(text.logits(x, Pass::Infer)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_filled_with_tokens_of_a_page_of_its_own() {
        assert_eq!([1, 2, 8, 9, 64, 65].map(places), [1, 8, 8, 16, 64, 72]);
        let (table, spare) = ([5, 6], [9]);
        let sequences = vec![(&table[..], PAGE + 1); 2];
        let mut step = Step { ids: vec![3, 4], positions: vec![[7; 3]; 2], sequences };
        step.fill(places(2), &spare);
        assert_eq!((step.ids.len(), step.positions.len(), step.sequences.len()), (8, 8, 8));
        // Each has a row to itself, all in the spare page.
        let page = 9 * PAGE as u32;
        assert_eq!(step.rows()[2..], (page..page + 6).collect::<Vec<_>>());
        let (spans, tables) = step.spans(2);
        assert_eq!(tables[4..6], [9, 0]);
        assert_eq!((spans[7].k_len, spans[7].k_start), (6, 14));
    }
}
