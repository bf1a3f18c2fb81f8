//! Attention over keys and values in pages (ops/kv_cache). A page is as long as a block of keys: floats are read where they lie, and a span
//! over pages has the bits of the same span over rows that follow one another, whatever pages it has.

use std::sync::OnceLock;

use super::super::embedding::expect_below;
use super::super::expect_shape;
use super::super::kv_cache::{PAGE, Pages};
use super::{
    Config, Item, KEYS, Source, Span, Spans, check_heads, check_spans, decode_reach, launch_paged, on_cpu,
};
use crate::error::{Error, Result};
use crate::tensor::{Indices, Tensor};

pub(super) const OP: &str = "attention forward_paged";

/// A block of keys lies in one page.
const _: () = assert!(PAGE == KEYS);

/// The sequences of a pass over pages. A span's k_start is the place in `tables` of its first page: its key j lies in row
/// tables[k_start + j / PAGE] * PAGE + j % PAGE. Every entry names a page, also where no span has it.
pub struct PagedSpans {
    pub(super) spans: Spans,
    pub(super) tables: Indices,
    /// Keys up to which a decode step's launches serve: those of the longest span of one query so far. It does not shrink, as launches that a graph
    /// keeps are those of a step that may be shorter than the first.
    pub(super) reach: usize,
    whole: OnceLock<Spans>,
    long: OnceLock<Gathered>,
}

/// Spans over rows that are gathered from these pages.
pub(super) struct Gathered {
    pub pages: Indices,
    pub spans: Spans,
}

impl PagedSpans {
    pub fn new(spans: Vec<Span>, tables: Vec<u32>) -> PagedSpans {
        let (whole, long) = (OnceLock::new(), OnceLock::new());
        PagedSpans { reach: reach(&spans), spans: spans.into(), tables: tables.into(), whole, long }
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
        self.reach = self.reach.max(reach(&spans));
        if let Some(whole) = self.whole.get_mut() {
            whole.set(spans.iter().map(in_rows).collect())?;
        }
        self.spans.set(spans)?;
        self.tables.set(tables)
    }

    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The spans over rows, if all pages of the tables are gathered.
    pub(super) fn whole(&self) -> &Spans {
        self.whole.get_or_init(|| self.spans.iter().map(in_rows).collect())
    }

    /// The spans of several queries over rows, and their pages. They have been checked.
    pub(super) fn long(&self) -> &Gathered {
        self.long.get_or_init(|| {
            let (mut pages, mut spans) = (Vec::new(), Vec::new());
            for span in self.spans.iter().filter(|s| s.q_len > 1) {
                spans.push(Span { k_start: pages.len() * PAGE, ..*span });
                pages.extend_from_slice(&self.tables[span.k_start..][..span.k_len.div_ceil(PAGE)]);
            }
            Gathered { pages: pages.into(), spans: spans.into() }
        })
    }
}

/// Of the tables' pages one after the other.
fn in_rows(span: &Span) -> Span {
    Span { k_start: span.k_start.saturating_mul(PAGE), ..*span }
}

fn reach(spans: &[Span]) -> usize {
    let longest = spans.iter().filter(|s| s.q_len == 1).map(|s| s.k_len).max();
    longest.map_or(0, decode_reach)
}

/// `forward` with keys and values in pages: out, q [Tq, NH*HS]. Rows that no span names are left as they are. A GPU reads pages where they lie for
/// spans of one query; those of longer spans it copies, for as long as this takes: 2 PAGE NKV HS elements a page.
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
    if let Some(gpu) = q.gpu() {
        return launch_paged::forward(gpu, out, q, [k, v], spans, &config);
    }
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
