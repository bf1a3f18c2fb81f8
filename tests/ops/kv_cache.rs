//! Pages against rows that follow one another, bit for bit; int8 pages against the same numbers in rows.
use mpa::ops::attention::{Config, PagedSpans, Span, Spans, forward, forward_paged};
use mpa::ops::kv_cache::{PAGE, PageType, Pages, gather, store};
use mpa::ops::quantize;
use mpa::tensor::{DType, Indices, Tensor};

use crate::common::*;

const KINDS: [PageType; 2] = [PageType::Float, PageType::Int8];

fn config(heads: usize, kv_heads: usize, head_size: usize, causal: bool) -> Config {
    Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal }
}

/// `count` pages of NaN (in int8: with scales of NaN).
fn spoiled(count: usize, c: &Config, kind: PageType) -> Pages {
    let mut pages = Pages::new(&Tensor::zeros(&[1]), count, c.kv_heads, c.head_size, kind).unwrap();
    let rows: Indices = (0..(count * PAGE) as u32).collect();
    store(&mut pages, &poisoned(&[rows.len(), c.kv_heads * c.head_size]), &rows).unwrap();
    pages
}

/// Keys, values and queries of sequences with these numbers of queries and keys.
struct Batch {
    lens: Vec<(usize, usize)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: Config,
}

impl Batch {
    fn new(lens: &[(usize, usize)], config: Config) -> Batch {
        let (queries, keys) = lens.iter().fold((0, 0), |(q, k), len| (q + len.0, k + len.1));
        let mut rng = Rng(3);
        let mut random = |rows, heads| rng.tensor(&[rows, heads * config.head_size], 1.0);
        let q = random(queries, config.heads);
        let (k, v) = (random(keys, config.kv_heads), random(keys, config.kv_heads));
        Batch { lens: lens.to_vec(), q, k, v, config }
    }

    /// One after the other; `places` is how many places in k so many keys take.
    fn spans(&self, places: impl Fn(usize) -> usize) -> Vec<Span> {
        let (mut q_start, mut k_start) = (0, 0);
        let next = |&(q_len, k_len): &(usize, usize)| {
            let span = Span { q_start, q_len, k_start, k_len };
            (q_start, k_start) = (q_start + q_len, k_start + places(k_len));
            span
        };
        self.lens.iter().map(next).collect()
    }

    /// Over rows that follow one another.
    fn plain(&self, k: &Tensor, v: &Tensor) -> Tensor {
        let mut out = poisoned(self.q.shape());
        let spans: Spans = self.spans(|k| k).into();
        forward(&mut out, None, &self.q, k, v, &spans, self.config).unwrap();
        out
    }

    /// Over pages of `kind`: entry i of the tables is page `page(i)` of `count`.
    fn paged(&self, kind: PageType, count: usize, page: impl Fn(u32) -> u32) -> Tensor {
        let spans = self.spans(|k| k.div_ceil(PAGE));
        let entries: usize = self.lens.iter().map(|l| l.1.div_ceil(PAGE)).sum();
        let tables: Vec<u32> = (0..entries as u32).map(page).collect();
        let mut rows = Vec::new();
        for s in &spans {
            rows.extend((0..s.k_len).map(|j| tables[s.k_start + j / PAGE] * PAGE as u32 + (j % PAGE) as u32));
        }
        let rows: Indices = rows.into();
        let pages = |x: &Tensor| {
            let mut pages = spoiled(count, &self.config, kind);
            store(&mut pages, x, &rows).unwrap();
            pages
        };
        let mut out = poisoned(self.q.shape());
        let spans = PagedSpans::new(spans, tables);
        forward_paged(&mut out, &self.q, &pages(&self.k), &pages(&self.v), &spans, self.config).unwrap();
        out
    }
}

fn bits(x: &Tensor) -> Vec<u32> {
    values(x).iter().map(|x| x.to_bits()).collect()
}

/// What int8 makes of each head of each row.
fn rounded(x: &Tensor, c: &Config) -> Tensor {
    let heads = x.clone().reshape(&[x.rows() * c.kv_heads, c.head_size]).unwrap();
    let mut q = Tensor::from_i8(heads.shape(), vec![0; heads.len()]).unwrap();
    let mut scale = Tensor::zeros(&[heads.rows()]);
    quantize::forward(&mut q, &mut scale, &heads).unwrap();
    let numbers = q.i8s().unwrap().iter().enumerate();
    let wide = numbers.map(|(i, &q)| f32::from(q) * values(&scale)[i / c.head_size]);
    Tensor::from_vec(x.shape(), wide.collect()).unwrap()
}

/// Blocks of 128 keys and 192 queries, more and less by one; few queries and many.
const LENS: [(usize, usize); 8] =
    [(1, 1), (3, 127), (1, 128), (20, 129), (70, 256), (1, 300), (200, 385), (2, 2)];

/// Another page for each of their 15 tables' entries.
fn mixed(i: u32) -> u32 {
    i * 7 % 19
}

#[test]
fn float_pages_have_the_bits_of_rows() {
    for c in [config(4, 2, 16, true), config(3, 1, 5, false), config(2, 2, 64, true)] {
        let b = Batch::new(&LENS, c);
        let want = bits(&b.plain(&b.k, &b.v));
        assert_eq!(bits(&b.paged(PageType::Float, 16, |i| i)), want);
        assert_eq!(bits(&b.paged(PageType::Float, 19, mixed)), want, "{c:?}");
    }
}

#[test]
fn int8_pages_are_attended_to_as_what_they_hold() {
    for c in [config(4, 2, 16, true), config(3, 1, 5, false), config(2, 2, 64, true)] {
        let b = Batch::new(&LENS, c);
        let want = b.plain(&rounded(&b.k, &c), &rounded(&b.v, &c));
        let got = b.paged(PageType::Int8, 19, mixed);
        // The same numbers, in rows of another stride.
        assert_close("int8 pages", values(&got), &to_f64(&want), f32_sum(c.head_size));
        assert_eq!(bits(&b.paged(PageType::Int8, 16, |i| i)), bits(&got), "other pages, {c:?}");
        assert_ne!(bits(&b.plain(&b.k, &b.v)), bits(&got), "else nothing was rounded");
    }
}

/// Two sequences that go on from one prefix: its first page is shared, its unfinished second one copied for the second sequence.
#[test]
fn sequences_share_pages_and_go_on_from_copies() {
    const BEGUN: usize = 40;
    let c = config(4, 2, 8, true);
    let prefix = PAGE + BEGUN;
    let b = Batch::new(&[(1, prefix + 5), (7, prefix + 7)], c);
    let part = |from, n| b.k.slice(from..from + n).unwrap();
    let (begin, first, second) = (part(0, prefix), part(prefix, 5), part(2 * prefix, 7));
    let keys = Tensor::concat(&[&begin, &first, &begin, &second]).unwrap();
    for kind in KINDS {
        let mut pages = spoiled(4, &c, kind);
        let from = |row: usize, n: usize| (row as u32..).take(n);
        let rows = from(2 * PAGE, PAGE).chain(from(PAGE, BEGUN)).collect();
        store(&mut pages, &begin, &rows).unwrap();
        pages.copy_rows(PAGE, 3 * PAGE, BEGUN).unwrap();
        store(&mut pages, &first, &from(PAGE + BEGUN, 5).collect()).unwrap();
        store(&mut pages, &second, &from(3 * PAGE + BEGUN, 7).collect()).unwrap();
        let spans = vec![
            Span { q_start: 0, q_len: 1, k_start: 0, k_len: prefix + 5 },
            Span { q_start: 1, q_len: 7, k_start: 2, k_len: prefix + 7 },
        ];
        let mut out = poisoned(b.q.shape());
        let spans = PagedSpans::new(spans, vec![2, 1, 2, 3]);
        forward_paged(&mut out, &b.q, &pages, &pages, &spans, c).unwrap();
        let held = if kind == PageType::Int8 { rounded(&keys, &c) } else { keys.clone() };
        assert_close("shared", values(&out), &to_f64(&b.plain(&held, &held)), f32_sum(c.head_size));
    }
}

/// The same table start, and keys up to the piece's end.
#[test]
fn pieces_of_a_prompt_have_the_bits_of_the_prompt() {
    let c = config(2, 1, 16, true);
    let b = Batch::new(&[(300, 300)], c);
    let want = b.plain(&b.k, &b.v);
    let rows: Indices = (0..300).map(|j| [256, 0, 128][j / PAGE] + (j % PAGE) as u32).collect();
    let pages = |x| {
        let mut pages = spoiled(3, &c, PageType::Float);
        store(&mut pages, x, &rows).unwrap();
        pages
    };
    let piece = |start, len| Span { q_start: start, q_len: len, k_start: 0, k_len: start + len };
    let mut out = poisoned(b.q.shape());
    // Queries are cut into items of 96 anyway.
    let spans = PagedSpans::new(vec![piece(0, 96), piece(96, 96), piece(192, 108)], vec![2, 0, 1]);
    forward_paged(&mut out, &b.q, &pages(&b.k), &pages(&b.v), &spans, c).unwrap();
    assert_eq!(bits(&out), bits(&want));
}

#[test]
fn spans_are_set_in_place() {
    let c = config(2, 1, 8, true);
    let b = Batch::new(&[(1, 200)], c);
    let mut pages = spoiled(3, &c, PageType::Float);
    store(&mut pages, &b.k, &(PAGE as u32..).take(200).collect()).unwrap();
    let span = |k_len| Span { q_start: 0, q_len: 1, k_start: 0, k_len };
    let mut spans = PagedSpans::new(vec![span(3)], vec![0, 0]);
    spans.set(vec![span(200)], vec![1, 2]).unwrap();
    assert_eq!(spans.spans(), [span(200)]);
    let mut out = poisoned(b.q.shape());
    forward_paged(&mut out, &b.q, &pages, &pages, &spans, c).unwrap();
    assert_eq!(bits(&out), bits(&b.plain(&b.k, &b.k)));
    let op = "attention forward_paged";
    assert_op_error(spans.set(vec![span(1)], vec![1]), op, "1 spans and 2 table entries");
    assert_op_error(spans.set(vec![], vec![1, 2]), op, "1 spans and 2 table entries");
    assert_op_error(spans.set(vec![Span { q_len: 2, ..span(9) }], vec![1, 2]), op, "spans of one query");
}

#[test]
fn pages_are_gathered_in_the_order_of_a_list() {
    let c = config(2, 2, 5, true);
    let x = Rng(4).tensor(&[3 * PAGE, 10], 2.0);
    for kind in KINDS {
        let mut pages = spoiled(3, &c, kind);
        assert_eq!(pages.kind(), kind);
        store(&mut pages, &x, &(0..3 * PAGE as u32).collect()).unwrap();
        let held = if kind == PageType::Int8 { rounded(&x, &c) } else { x.clone() };
        let page = |i: usize| held.slice(i * PAGE..(i + 1) * PAGE).unwrap();
        let mut out = poisoned(&[4 * PAGE, 10]);
        gather(&mut out, &pages, &vec![2, 0, 2, 1].into()).unwrap();
        let want = Tensor::concat(&[&page(2), &page(0), &page(2), &page(1)]).unwrap();
        assert_eq!(bits(&out), bits(&want));
        let op = "kv_cache gather";
        assert_op_error(gather(&mut out, &pages, &vec![0, 3, 1, 1].into()), op, "pages below 3");
        assert_op_error(gather(&mut out, &pages, &vec![0].into()), op, "out [128, 10]");
    }
}

#[test]
fn rows_take_as_many_bytes_as_said() {
    assert_eq!(PageType::Float.row_bytes(DType::Bf16, 4, 128), 1024);
    assert_eq!(PageType::Float.row_bytes(DType::F32, 4, 128), 2048);
    assert_eq!(PageType::Int8.row_bytes(DType::Bf16, 4, 128), 4 * (128 + 4));
    assert_eq!(PageType::default(), PageType::Float);
}

#[test]
fn same_bits_on_any_pool() {
    let b = Batch::new(&LENS, config(4, 2, 64, true));
    for kind in KINDS {
        assert_same_on_any_pool("pages", || values(&b.paged(kind, 19, mixed)).to_vec());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let c = config(2, 1, 4, true);
    for kind in KINDS {
        let mut pages = spoiled(2, &c, kind);
        assert_eq!(pages.rows(), 2 * PAGE);
        let x = Tensor::zeros(&[2, 4]);
        let op = "kv_cache store";
        assert_op_error(store(&mut pages, &x, &vec![0, 256].into()), op, "rows below 256");
        assert_op_error(store(&mut pages, &x, &vec![0].into()), op, "x [1, 4]");
        assert_op_error(store(&mut pages, &Tensor::zeros(&[2, 5]), &vec![0, 1].into()), op, "x [2, 4]");
        assert_op_error(pages.copy_rows(0, 250, 7), "rows", "within 256 rows");
        let (other, few) = (spoiled(2, &config(2, 2, 2, true), kind), spoiled(1, &c, kind));
        let q = Tensor::zeros(&[3, 8]);
        let attend = |k: &Pages, v: &Pages, span, tables| {
            forward_paged(&mut q.clone(), &q, k, v, &PagedSpans::new(vec![span], tables), c)
        };
        let span = Span { q_start: 0, q_len: 3, k_start: 0, k_len: 129 };
        let op = "attention forward_paged";
        attend(&pages, &pages, span, vec![1, 0]).unwrap();
        let refused = |span, tables, why| assert_op_error(attend(&pages, &pages, span, tables), op, why);
        refused(span, vec![1], "3 queries and 1 table entries");
        refused(Span { k_start: 1, ..span }, vec![1, 0], "2 table entries");
        refused(Span { k_start: usize::MAX, ..span }, vec![1, 0], "2 table entries");
        refused(Span { q_start: 1, ..span }, vec![1, 0], "3 queries");
        refused(Span { k_len: 2, ..span }, vec![1, 0], "as many keys");
        refused(span, vec![1, 2], "table entries below 2");
        assert_op_error(attend(&pages, &few, span, vec![1, 0]), op, "table entries below 1");
        assert_op_error(attend(&other, &pages, span, vec![1, 0]), op, "k of 1 heads of 4");
        assert_op_error(attend(&pages, &other, span, vec![1, 0]), op, "v of 1 heads of 4");
    }
}
