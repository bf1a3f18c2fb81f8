//! Tensors and the call of what keeps keys and values in pages.

use super::cases::{Call, Maker};
use super::work::Work;
use crate::error::{Error, Result};
use crate::ops::attention::{Config, PagedSpans, Span, forward_paged};
use crate::ops::kv_cache::{PAGE, PageType, Pages, store};
use crate::tensor::Indices;

impl Maker {
    pub(super) fn paged(&self, work: &Work) -> Result<Call> {
        match *work {
            Work::AttentionPaged { heads, kv_heads, head_size, ref spans, .. } => {
                let scale = 1.0 / (head_size as f32).sqrt();
                let config = Config { heads, kv_heads, head_size, scale, causal: true };
                let (mut queries, mut entries) = (0, 0);
                let place = |&(q_len, k_len): &(usize, usize)| {
                    let span = Span { q_start: queries, q_len, k_start: entries, k_len };
                    (queries, entries) = (queries + q_len, entries + k_len.div_ceil(PAGE));
                    span
                };
                let spans: Vec<Span> = spans.iter().map(place).collect();
                let tables = (0..entries as u32).rev().collect();
                let [k, v] = [self.pages(entries, work)?, self.pages(entries, work)?];
                let [mut out, q] = self.randoms(&[queries, heads * head_size])?;
                let spans = PagedSpans::new(spans, tables);
                Ok(Box::new(move || forward_paged(&mut out, &q, &k, &v, &spans, config)))
            }
            Work::KvCacheStore { rows, kv_heads, head_size, .. } => {
                let mut pages = self.pages(rows.div_ceil(PAGE), work)?;
                let x = self.random(&[rows, kv_heads * head_size])?;
                let rows: Indices = (0..rows as u32).collect();
                Ok(Box::new(move || store(&mut pages, &x, &rows)))
            }
            ref other => Err(Error::Failure(format!("bench: no case for {}", other.op()))),
        }
    }

    /// Pages of random numbers.
    fn pages(&self, count: usize, work: &Work) -> Result<Pages> {
        let (kv_heads, head_size, int8) = match *work {
            Work::AttentionPaged { kv_heads, head_size, int8, .. }
            | Work::KvCacheStore { kv_heads, head_size, int8, .. } => (kv_heads, head_size, int8),
            ref other => return Err(Error::Failure(format!("bench: no pages for {}", other.op()))),
        };
        let x = self.random(&[count * PAGE, kv_heads * head_size])?;
        let kind = if int8 { PageType::Int8 } else { PageType::Float };
        let mut pages = Pages::new(&x, count, kv_heads, head_size, kind)?;
        store(&mut pages, &x, &(0..x.rows() as u32).collect())?;
        Ok(pages)
    }
}
