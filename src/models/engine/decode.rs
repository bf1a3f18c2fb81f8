//! Decode steps: one token more for each of a number of sequences. On a GPU the hundreds of launches of a step are kept as a graph and queued
//! again for the next one; only what they read (ids, rotations, where keys and values go, how many there are) changes.

use crate::error::{Error, Result};
use crate::models::rope::{Position, Rope};
use crate::models::text::{KvCache, Text};
use crate::ops::attention::{self, Span, Spans};
use crate::tensor::{Graph, Indices, Tensor};

/// One token of each sequence.
#[derive(Default)]
pub(super) struct Step {
    pub ids: Vec<u32>,
    pub positions: Vec<Position>,
    /// Where its key and value go in the cache.
    pub rows: Vec<u32>,
    /// The cache rows that it sees; q_start counts up, q_len is 1.
    pub spans: Vec<Span>,
}

/// Runs steps; the last one's inputs and launches are kept for the next.
#[derive(Default)]
pub(super) struct Decoder {
    kept: Option<Kept>,
}

/// What the launches of a step read, and, from the second such step on, the launches.
struct Kept {
    ids: Indices,
    rope: Rope,
    rows: Indices,
    tokens: Indices,
    spans: Spans,
    /// Keys of the longest span that these launches can serve.
    reach: usize,
    graph: Option<(Graph, Tensor)>,
}

impl Decoder {
    /// Logits after each token, [sequences, V]. The result of the last call may be overwritten.
    pub fn step(&mut self, text: &Text, step: Step, cache: &mut KvCache) -> Result<Tensor> {
        let longest = step.spans.iter().map(|s| s.k_len).max().unwrap_or(0);
        let fits = |kept: &&mut Kept| kept.ids.len() == step.ids.len() && longest <= kept.reach;
        let Some(kept) = self.kept.as_mut().filter(fits) else {
            // The first step of its kind brings all it reads to the device, and the memory it needs into the arena.
            let kept = self.kept.insert(Kept::new(text, step, longest)?);
            return kept.run(text, cache);
        };
        kept.set(text, step)?;
        let Some(gpu) = text.gpu().cloned() else { return kept.run(text, cache) };
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
    fn new(text: &Text, step: Step, longest: usize) -> Result<Kept> {
        Ok(Kept {
            tokens: (0..step.ids.len() as u32).collect(),
            ids: step.ids.into(),
            rope: text.rope(&step.positions)?,
            rows: step.rows.into(),
            spans: step.spans.into(),
            reach: attention::decode_reach(longest),
            graph: None,
        })
    }

    /// Puts another step's inputs in the place of the last one's.
    fn set(&mut self, text: &Text, step: Step) -> Result<()> {
        self.ids.set(step.ids)?;
        self.rows.set(step.rows)?;
        self.spans.set(step.spans)?;
        text.set_rope(&mut self.rope, &step.positions)
    }

    fn run(&self, text: &Text, cache: &mut KvCache) -> Result<Tensor> {
        let x = text.embed(&self.ids)?;
        let x = text.blocks_cached(x, &self.rope, (&self.rows, &self.tokens), &self.spans, cache)?;
        Ok(text.logits(x, crate::models::linear::Pass::Infer)?.0)
    }
}
