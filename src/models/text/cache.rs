//! Keys and values of all layers, in pages (ops/kv_cache). Who has which pages is the caller's business.

use std::ops::Range;

use super::Text;
use crate::error::Result;
use crate::ops::attention::{PagedSpans, Spans};
use crate::ops::kv_cache::{PAGE, PageType, Pages};
use crate::tensor::{DType, Indices};

pub struct KvCache {
    /// Of each layer, the keys and the values.
    pub(super) layers: Vec<[Pages; 2]>,
    /// A page beside those that were asked for: no sequence of the caller's has it.
    pub spare: u32,
}

/// The pages of a sequence, in order: its token t has row t % PAGE of the (t / PAGE)-th.
pub type Table = [u32];

/// The row of a sequence's token.
pub fn row(table: &Table, token: usize) -> u32 {
    table[token / PAGE] * PAGE as u32 + (token % PAGE) as u32
}

/// The keys and values that the tokens of a pass see.
pub(super) enum Seen<'a> {
    /// Those of the pass itself.
    Pass(&'a Spans),
    /// Those in a layer's cache, where the pass's own have been put at `rows`.
    Cached { kv: &'a mut [Pages; 2], rows: &'a Indices, spans: &'a PagedSpans },
}

impl Text {
    /// So many pages for each layer's keys and values, and a spare one.
    pub fn cache(&self, pages: usize, kind: PageType) -> Result<KvCache> {
        let (like, [heads, size]) = (self.embed.get(), self.kv_heads);
        let new = || Pages::new(like, pages + 1, heads, size, kind);
        let layers = self.blocks.iter().map(|_| Ok([new()?, new()?])).collect::<Result<_>>()?;
        Ok(KvCache { layers, spare: pages as u32 })
    }

    /// Bytes of a token's keys and values in all layers.
    pub fn cache_bytes(&self, kind: PageType) -> usize {
        let [heads, size] = self.kv_heads;
        let dtype = if self.gpu().is_some() { self.dtype() } else { DType::F32 };
        self.blocks.len() * 2 * kind.row_bytes(dtype, heads, size)
    }
}

impl KvCache {
    /// Copies what a sequence has of some tokens, from the first of a page on, to the same tokens of another, in every layer.
    pub fn copy(&mut self, from: &Table, to: &Table, tokens: Range<usize>) -> Result<()> {
        for pages in self.layers.iter_mut().flatten() {
            for start in tokens.clone().step_by(PAGE) {
                let [from, to] = [from, to].map(|table| row(table, start) as usize);
                pages.copy_rows(from, to, PAGE.min(tokens.end - start))?;
            }
        }
        Ok(())
    }
}
