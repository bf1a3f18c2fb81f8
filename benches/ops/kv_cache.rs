use criterion::{Criterion, criterion_group};
use mpa::ops::attention::{Config, PagedSpans, Span, forward_paged};
use mpa::ops::kv_cache::{PAGE, PageType, Pages, store};
use mpa::tensor::Indices;

use crate::{measure, tensor};

/// Sequences of a decode step, and pages of each.
const SEQUENCES: usize = 8;
const EACH: usize = 8;

/// Qwen2-VL-2B: NH, NKV, HS.
const HEADS: [usize; 3] = [12, 2, 128];

const KINDS: [(PageType, &str); 2] = [(PageType::Float, "float pages"), (PageType::Int8, "int8 pages")];

/// Keys of all sequences.
fn filled(kind: PageType) -> Pages {
    let [_, kv_heads, head_size] = HEADS;
    let count = SEQUENCES * EACH;
    let x = tensor(&[count * PAGE, kv_heads * head_size]);
    let mut pages = Pages::new(&x, count, kv_heads, head_size, kind).expect("room for it");
    store(&mut pages, &x, &(0..x.rows() as u32).collect()).expect("rows that are there");
    pages
}

fn forward(c: &mut Criterion) {
    let [heads, kv_heads, head_size] = HEADS;
    for (kind, name) in KINDS {
        let (mut k, v) = (filled(kind), filled(kind));
        let q = tensor(&[SEQUENCES, heads * head_size]);
        let mut out = q.like(q.shape()).expect("room for it");
        let row = kind.row_bytes(q.dtype(), kv_heads, head_size);
        let span = |i| Span { q_start: i, q_len: 1, k_start: i * EACH, k_len: EACH * PAGE };
        let tables = (0..(SEQUENCES * EACH) as u32).rev().collect();
        let spans = PagedSpans::new((0..SEQUENCES).map(span).collect(), tables);
        let config = Config { heads, kv_heads, head_size, scale: 0.1, causal: true };
        measure(c, "kv_cache decode", name, 2 * k.rows() * row, || {
            forward_paged(&mut out, &q, &k, &v, &spans, config).unwrap();
        });
        let x = tensor(&[1024, kv_heads * head_size]);
        let rows: Indices = (0..1024).rev().collect();
        measure(c, "kv_cache store", name, x.len() * x.dtype().size() + x.rows() * row, || {
            store(&mut k, &x, &rows).unwrap();
        });
    }
}

criterion_group!(benches, forward);
