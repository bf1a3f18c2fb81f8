//! Pages against float64, and in floats bit for bit against rows, which attention.rs and attention_hopper.rs compare with float64.
use mpa::ops::attention::{Config, PagedSpans, Span, decode_reach, forward_paged};
use mpa::ops::kv_cache::{PAGE, PageType, Pages, gather, store};
use mpa::tensor::{DType, Device, Graph, Indices, Tensor};

use crate::attention::{Batch, batch, check_against, config, rows, run};
use crate::common::assert_op_error;
use crate::device::{DTYPES, on_each_device, on_each_device_without_hopper, output, values, what};

const KINDS: [PageType; 2] = [PageType::Float, PageType::Int8];

/// Queries and keys: less than a page, whole ones, less and more than these by a key, two splits and three; spans that are not there;
/// spans of several queries among them. The last ends with the tables.
const MIXED: [(usize, usize); 12] = [
    (1, 128),
    (1, 1),
    (3, 5),
    (1, 127),
    (0, 0),
    (1, 129),
    (35, 256),
    (1, 256),
    (1, 257),
    (0, 5),
    (2, 129),
    (1, 300),
];

/// A batch whose keys are in pages.
struct Paged {
    b: Batch,
    k: Pages,
    v: Pages,
    /// The same keys and values in pages of the CPU, with the same bits (tests/kernels/kv_cache.rs).
    held: [Pages; 2],
    spans: Vec<Span>,
    tables: Vec<u32>,
}

/// Pages that the entries of a table take, in no order that a kernel could guess; others hold NaN, as all fresh memory does.
fn scrambled(entries: usize) -> (Vec<u32>, usize) {
    let count = (entries + 2).next_multiple_of(7) + 1;
    ((0..entries).map(|i| ((i * 7 + 3) % count) as u32).collect(), count)
}

impl Paged {
    fn new(b: Batch, kinds: [PageType; 2]) -> Paged {
        let (mut spans, mut entries) = (Vec::new(), 0);
        for s in &b.spans {
            spans.push(Span { k_start: entries, ..*s });
            entries += s.k_len.div_ceil(PAGE);
        }
        let (tables, count) = scrambled(entries);
        let pages = |x: &Tensor, kind| {
            let mut pages = Pages::new(x, count, b.config.kv_heads, b.config.head_size, kind).unwrap();
            for (s, paged) in b.spans.iter().zip(&spans) {
                let to: Indices = (0..s.k_len).map(|j| row(&tables, paged, j)).collect();
                store(&mut pages, &rows(x, s.k_start, s.k_len), &to).unwrap();
            }
            pages
        };
        let (k, v) = (pages(&b.k, kinds[0]), pages(&b.v, kinds[1]));
        let held = [(&b.k, kinds[0]), (&b.v, kinds[1])].map(|(x, kind)| pages(&x.to_f32().unwrap(), kind));
        Paged { b, k, v, held, spans, tables }
    }

    fn run(&self) -> Vec<f32> {
        let spans = PagedSpans::new(self.spans.clone(), self.tables.clone());
        let mut out = output(&self.b.q, self.b.q.shape());
        forward_paged(&mut out, &self.b.q, &self.k, &self.v, &spans, self.b.config).unwrap();
        values(&out)
    }

    /// The batch with keys and values as they are kept; what is gathered for spans of several queries, or of as many as `gathered`, is
    /// rounded to the activations' type.
    fn held(&self, gathered: usize) -> Batch {
        let (all, width): (Indices, _) = (self.tables.as_slice().into(), self.b.k.cols());
        let fill = |x: &Tensor, pages: &Pages| {
            let mut wide = Tensor::zeros(&[all.len() * PAGE, width]);
            gather(&mut wide, pages, &all).unwrap();
            let (narrow, wide) = (values(&wide.to_dtype(x.dtype()).unwrap()), values(&wide));
            let mut data = vec![f32::NAN; x.len()];
            for (s, paged) in self.b.spans.iter().zip(&self.spans) {
                let from = if s.q_len >= gathered { &narrow } else { &wide };
                let from = &from[paged.k_start * PAGE * width..][..s.k_len * width];
                data[s.k_start * width..][..from.len()].copy_from_slice(from);
            }
            Tensor::from_vec(x.shape(), data).unwrap()
        };
        Batch { k: fill(&self.b.k, &self.held[0]), v: fill(&self.b.v, &self.held[1]), ..self.b.clone() }
    }
}

/// Row of the pages that key `j` of a span lies in.
fn row(tables: &[u32], span: &Span, j: usize) -> u32 {
    tables[span.k_start + j / PAGE] * PAGE as u32 + (j % PAGE) as u32
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn check(device: &Device, dtype: DType, lens: &[(usize, usize)], config: Config, kinds: [PageType; 2]) {
    let p = Paged::new(batch(device, dtype, lens, config, 4.0), kinds);
    let name = what(&[&format!("{dtype} {config:?} {kinds:?}")]);
    let out = p.run();
    if kinds == [PageType::Float; 2] {
        assert!(bits(&out) == bits(&run(&p.b).0), "{name}: not the bits of rows");
    }
    // A decode kernel for both kinds of pages, or one for neither: then all is gathered, and weights are rounded everywhere.
    let decoded = kinds[0] == kinds[1] && config.head_size.is_multiple_of(4) && config.head_size <= 128;
    let decoded = decoded && (kinds[0] == PageType::Float || config.head_size.is_multiple_of(8));
    let least = if decoded { 2 } else { 0 };
    check_against(&name, &p.held(least), &(out, Vec::new()), least);
}

#[test]
fn mixed_batches_match_f64_for_every_head_size() {
    on_each_device_without_hopper(|device| {
        for kind in KINDS {
            for head_size in [8, 64, 72, 128] {
                check(device, DType::Bf16, &MIXED, config(1, 1, head_size, head_size % 16 == 0), [kind; 2]);
            }
            // 12 has a decode kernel for floats alone; 5 and 132 have none.
            for head_size in [5, 12, 64, 128, 132] {
                check(device, DType::F32, &MIXED, config(1, 1, head_size, head_size % 8 == 0), [kind; 2]);
            }
        }
    });
}

#[test]
fn decode_matches_f64_for_every_group() {
    const LENS: [(usize, usize); 4] = [(1, 0), (1, 3), (1, 290), (1, 513)];
    on_each_device(|device| {
        for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
            for (heads, kv_heads) in [(3, 3), (4, 2), (6, 2), (5, 1), (8, 1), (18, 2)] {
                check(device, dtype, &LENS, config(heads, kv_heads, 16, false), [kind; 2]);
            }
            check(device, dtype, &[(1, 0), (0, 0)], config(2, 1, 64, false), [kind; 2]);
            // One page ends with the last key, and with it the tables.
            for pages in [1, 3] {
                check(device, dtype, &[(1, pages * PAGE)], config(2, 1, 16, false), [kind; 2]);
            }
            check(device, dtype, &[], config(2, 1, 64, true), [kind; 2]);
        }
    });
}

#[test]
fn keys_and_values_may_be_kept_differently() {
    on_each_device_without_hopper(|device| {
        for dtype in DTYPES {
            for kinds in [[PageType::Float, PageType::Int8], [PageType::Int8, PageType::Float]] {
                check(device, dtype, &MIXED, config(4, 2, 16, true), kinds);
            }
        }
    });
}

/// The kernels for Hopper load what is gathered through tensor maps.
#[test]
fn hopper_has_the_bits_of_rows() {
    on_each_device(|device| {
        let b = batch(device, DType::Bf16, &[(1, 130), (140, 150), (3, 257)], config(2, 1, 64, true), 4.0);
        let p = Paged::new(b, [PageType::Float; 2]);
        assert!(bits(&p.run()) == bits(&run(&p.b).0));
    });
}

/// Two sequences that begin with the same page and a half: the page is in both tables. And one table for spans that end at different keys.
#[test]
fn sequences_share_pages() {
    on_each_device_without_hopper(|device| {
        for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
            let c = config(4, 2, 16, true);
            let mut p = Paged::new(batch(device, dtype, &[(1, 200), (1, 250), (7, 250)], c, 4.0), [kind; 2]);
            // The first two spans' tables: pages a, b and c, d. Now the second's are a, d.
            let (first, second) = (p.spans[0].k_start, p.spans[1].k_start);
            p.tables[second] = p.tables[first];
            // And the third has the table of the second: its queries are the last before the 250th key and that one.
            p.spans[2].k_start = second;
            check_against("shared", &p.held(2), &(p.run(), Vec::new()), 2);
        }
    });
}

/// A key's or value's row is another, or in int8 its scale alone: the output must show each.
#[test]
fn every_row_and_scale_counts() {
    on_each_device_without_hopper(|device| {
        for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
            for q_len in [1, 2] {
                let b = batch(device, dtype, &[(q_len, 300)], config(2, 1, 16, false), 1.0);
                let mut p = Paged::new(b, [kind; 2]);
                let before = p.run();
                for (j, of_keys) in
                    [0, 127, 128, 255, 256, 299].into_iter().flat_map(|j| [(j, true), (j, false)])
                {
                    let from = rows(if of_keys { &p.b.k } else { &p.b.v }, p.b.spans[0].k_start + j, 1);
                    // Four times a row has the same int8.
                    let other = values(&from).iter().map(|x| 4.0 * x).collect();
                    let other = Tensor::from_vec(&[1, 16], other).unwrap().to_dtype(dtype).unwrap();
                    let at: Indices = vec![row(&p.tables, &p.spans[0], j)].into();
                    let pages = if of_keys { &mut p.k } else { &mut p.v };
                    store(pages, &other.to_device(device).unwrap(), &at).unwrap();
                    assert_ne!(bits(&p.run()), bits(&before), "{dtype} {kind:?} key {j} {of_keys} {q_len}");
                    let pages = if of_keys { &mut p.k } else { &mut p.v };
                    store(pages, &from, &at).unwrap();
                }
                assert_eq!(bits(&p.run()), bits(&before), "put back");
            }
        }
    });
}

/// Steps of a graph: longer and shorter than the one that was kept, over other pages. The first step is the longest: it says how far they may go.
#[test]
fn graphs_serve_steps_of_other_lengths_and_pages() {
    const STEPS: [[usize; 2]; 5] = [[500, 130], [100, 3], [512, 257], [0, 511], [128, 129]];
    on_each_device(|device| {
        let Device::Cuda(gpu) = device else { panic!("a device") };
        // Without a decode kernel all of the tables is gathered.
        for (kind, head_size) in [(PageType::Float, 16), (PageType::Int8, 16), (PageType::Float, 5)] {
            let b = batch(device, DType::F32, &[(1, 512), (1, 512)], config(2, 1, head_size, false), 4.0);
            let p = Paged::new(b, [kind; 2]);
            let step = |i: usize| {
                let spans: Vec<Span> = (0..2).map(|s| Span { k_len: STEPS[i][s], ..p.spans[s] }).collect();
                // Pages go round.
                let tables: Vec<u32> = (0..8).map(|e| p.tables[(e + 3 * i) % 8]).collect();
                (spans, tables)
            };
            assert!(STEPS.iter().flatten().all(|&n| n <= decode_reach(500)));
            let mut spans = PagedSpans::new(step(0).0, step(0).1);
            let attend = |spans: &PagedSpans| {
                let mut out = output(&p.b.q, p.b.q.shape());
                forward_paged(&mut out, &p.b.q, &p.k, &p.v, spans, p.b.config)?;
                Ok(out)
            };
            let mut kept = None;
            for i in 0..STEPS.len() {
                let (now, tables) = step(i);
                let want = values(&attend(&PagedSpans::new(now.clone(), tables.clone())).unwrap());
                spans.set(now, tables).unwrap();
                if i == 0 {
                    assert_eq!(bits(&values(&attend(&spans).unwrap())), bits(&want));
                    continue;
                }
                if i == 1 {
                    kept = Some(Graph::capture(gpu, || attend(&spans)).unwrap());
                }
                let (graph, out) = kept.as_ref().unwrap();
                graph.replay().unwrap();
                assert_eq!(bits(&values(out)), bits(&want), "{kind:?} {head_size} step {i}");
            }
        }
    });
}

#[test]
fn what_has_no_kernel_is_refused() {
    on_each_device_without_hopper(|device| {
        let op = "attention forward_paged";
        for kind in KINDS {
            let p = Paged::new(batch(device, DType::F32, &[(1, 3)], config(1, 1, 8, true), 1.0), [kind; 2]);
            let spans = PagedSpans::new(p.spans.clone(), p.tables.clone());
            let attend =
                |q: &Tensor, config| forward_paged(&mut output(q, q.shape()), q, &p.k, &p.v, &spans, config);
            attend(&p.b.q, p.b.config).unwrap();
            for scale in [0.0, -1.0, f32::NAN] {
                let config = Config { scale, ..p.b.config };
                assert_op_error(attend(&p.b.q, config), op, "a finite scale above 0");
            }
            let half = p.b.q.to_dtype(DType::F16).unwrap().to_device(device).unwrap();
            assert_op_error(attend(&half, p.b.config), op, "all f32 or all bf16");
            let narrow = p.b.q.to_dtype(DType::Bf16).unwrap().to_device(device).unwrap();
            match kind {
                PageType::Float => assert_op_error(attend(&narrow, p.b.config), op, "all f32 or all bf16"),
                PageType::Int8 => attend(&narrow, p.b.config).unwrap(),
            }
        }
        let wide = batch(device, DType::Bf16, &[(1, 3)], config(1, 1, 136, true), 1.0);
        let p = Paged::new(wide, [PageType::Float; 2]);
        let spans = PagedSpans::new(p.spans.clone(), p.tables.clone());
        let mut out = output(&p.b.q, p.b.q.shape());
        let result = forward_paged(&mut out, &p.b.q, &p.k, &p.v, &spans, p.b.config);
        assert_op_error(result, "attention forward", "up to 128");
    });
}
