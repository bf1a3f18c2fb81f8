//! Attention over keys and values in pages (ops/kv_cache). A page is as long as a block of keys: floats are read where they lie, and a span
//! over pages has the bits of the same span over rows that follow one another, whatever pages it has.

use super::super::embedding::expect_below;
use super::super::expect_shape;
use super::super::kv_cache::{PAGE, Pages};
use super::{Config, Item, KEYS, Source, Span, Spans, check_heads, check_spans, on_cpu};
use crate::error::{Error, Result};
use crate::tensor::{Indices, Tensor};

const OP: &str = "attention forward_paged";

/// A block of keys lies in one page.
const _: () = assert!(PAGE == KEYS);

/// The sequences of a pass over pages. A span's k_start is the place in `tables` of its first page: its key j lies in row
/// tables[k_start + j / PAGE] * PAGE + j % PAGE. Every entry names a page, also where no span has it.
pub struct PagedSpans {
    spans: Spans,
    tables: Indices,
}

impl PagedSpans {
    pub fn new(spans: Vec<Span>, tables: Vec<u32>) -> PagedSpans {
        PagedSpans { spans: spans.into(), tables: tables.into() }
    }

    /// Others, as many spans and table entries as before, in the same place: decode graphs read the same addresses again. Only of one
    /// query each.
    pub fn set(&mut self, spans: Vec<Span>, tables: Vec<u32>) -> Result<()> {
        if let Some(span) = self.spans.iter().chain(&spans).find(|s| s.q_len != 1) {
            return Err(Error::op(OP, "spans of one query to set others", format!("{span:?}")));
        }
        if spans.len() != self.spans.len() || tables.len() != self.tables.len() {
            let counts = |spans: usize, tables: usize| format!("{spans} spans and {tables} table entries");
            let expected = counts(self.spans.len(), self.tables.len());
            return Err(Error::op(OP, expected, counts(spans.len(), tables.len())));
        }
        self.spans.set(spans)?;
        self.tables.set(tables)
    }

    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// `forward` with keys and values in pages: out, q [Tq, NH*HS]. Rows that no span names are left as they are.
pub fn forward_paged(
    out: &mut Tensor,
    q: &Tensor,
    k: &Pages,
    v: &Pages,
    spans: &PagedSpans,
    config: Config,
) -> Result<()> {
    check(q, k, v, spans, &config)?;
    expect_shape(OP, "out", out, q.shape())?;
    let kv = [k, v].map(|pages| Source::Pages { pages, tables: &spans.tables });
    on_cpu(out, None, q, kv, &spans.spans, &config)
}

fn check(q: &Tensor, k: &Pages, v: &Pages, spans: &PagedSpans, config: &Config) -> Result<()> {
    check_heads(OP, q, config)?;
    k.expect(OP, "k", config)?;
    v.expect(OP, "v", config)?;
    expect_below(OP, "table entries", &spans.tables, k.rows().min(v.rows()) / PAGE)?;
    let pages = |span: &Span| span.k_start.checked_add(span.k_len.div_ceil(PAGE));
    let fits = |span: &Span| pages(span).is_some_and(|end| end <= spans.tables.len());
    check_spans(OP, q, &format!("{} table entries", spans.tables.len()), &spans.spans, config, fits)
}

/// Keys `start` .. `start + n` of an item, one block of them: the elements of its head, and from where to where a row is.
pub(super) fn block<'a>(
    (pages, tables): (&'a Pages, &[u32]),
    wide: &'a mut Vec<f32>,
    item: &Item,
    start: usize,
    n: usize,
) -> Result<(&'a [f32], usize)> {
    let page = tables[item.span.k_start + start / PAGE] as usize;
    pages.block(wide, page * PAGE, n, item.kv_head)
}
