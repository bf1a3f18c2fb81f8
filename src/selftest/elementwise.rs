//! add, swiglu, gelu, and rope in its three forms.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::{add, gelu, rope, swiglu};
use crate::selftest::on::On;
use crate::tensor::Tensor;

/// Rows and columns.
const QUICK: &[(usize, usize)] = &[(1, 1), (3, 5), (7, 961), (2, 2560)];
const FULL: &[(usize, usize)] = &[(1024, 2560), (32, 2560), (1024, 8960), (256, 18944), (4 * 1024, 3072)];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let full = if size.quick() { &[] } else { FULL };
    let mut cases = Vec::new();
    for &(rows, cols) in QUICK.iter().chain(full) {
        let shape = format!("{rows} x {cols}");
        cases.push(Case::new("add", &shape, move |on| {
            let (mut out, x) = (on.random(&[rows, cols], 1.0)?, on.random(&[rows, cols], 1.0)?);
            add::forward(&mut out, &x)?;
            Output::one(out, Tolerance::stored(on.dtype, 1.0))
        }));
        cases.push(Case::new("swiglu", &shape, move |on| {
            let (gate, up) = (on.random(&[rows, cols], 8.0)?, on.random(&[rows, cols], 2.0)?);
            let mut out = on.output(&[rows, cols])?;
            swiglu::forward(&mut out, &gate, &up)?;
            Output::one(out, Tolerance::stored(on.dtype, 2.0))
        }));
        cases.extend(gelu::Kind::ALL.map(|kind| {
            Case::new("gelu", format!("{shape}, {kind:?}"), move |on| {
                let (x, mut out) = (on.random(&[rows, cols], 6.0)?, on.output(&[rows, cols])?);
                gelu::forward(&mut out, &x, kind)?;
                Output::one(out, Tolerance::stored(on.dtype, 2.0))
            })
        }));
    }
    cases.extend(ropes(size).into_iter().map(|r| {
        let shape = format!("{}, {} tokens, {:?} heads of {}", r.name, r.tokens, r.heads, r.head_size);
        Case::new("rope", shape, move |on| turned(on, r))
    }));
    let vision = ropes(size).into_iter().filter(|r| r.heads[0] == r.heads[1]);
    cases.extend(vision.map(|r| {
        let shape = format!("{}, {} tokens, {:?} heads of {}", r.name, r.tokens, r.heads, r.head_size);
        Case::new("rope split", shape, move |on| split(on, r))
    }));
    cases
}

#[derive(Clone, Copy)]
struct Rope {
    name: &'static str,
    tokens: usize,
    /// Of queries and of keys.
    heads: [usize; 2],
    head_size: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// So many elements of a head, by the token's number.
    Line(usize),
    /// By time, height and width; lengths of the sections.
    Sections([usize; 3]),
    /// By row and column.
    Plane,
}

fn ropes(size: Size) -> Vec<Rope> {
    use Kind::{Line, Plane, Sections};
    let rope = |name, tokens, heads, head_size, kind| Rope { name, tokens, heads, head_size, kind };
    let few = |n: usize| if size.quick() { n.min(5) } else { n };
    vec![
        rope("SmolVLM-500M", few(1024), [15, 5], 64, Line(64)),
        rope("Qwen2-VL-2B", few(1024), [12, 2], 128, Sections([16, 24, 24])),
        rope("Qwen2-VL vision", few(1024), [16, 16], 80, Plane),
        rope("a quarter of a head", few(257), [3, 3], 64, Line(16)),
        rope("small", 3, [2, 1], 6, Line(6)),
        rope("one token", 1, [1, 1], 2, Line(2)),
    ]
}

fn turned(on: &mut On, r: Rope) -> Result<Vec<Output>> {
    let Rope { tokens, heads: [heads, kv_heads], head_size, kind, .. } = r;
    let (mut q, mut k) =
        (on.random(&[tokens, heads * head_size], 1.0)?, on.random(&[tokens, kv_heads * head_size], 1.0)?);
    let (cos, sin) = table(kind, tokens as u32, head_size)?;
    let (cos, sin) = (on.moved(cos)?, on.moved(sin)?);
    rope::forward_pair(&mut q, &mut k, &cos, &sin, [heads, kv_heads])?;
    let tolerance = || Tolerance::stored(on.dtype, 1.0);
    Ok(vec![Output::new("(q)", q, tolerance()), Output::new("(k)", k, tolerance())])
}

/// Out of one product's rows, and gradients into them.
fn split(on: &mut On, r: Rope) -> Result<Vec<Output>> {
    let Rope { tokens, heads, head_size, kind, .. } = r;
    let qkv = on.random(&[tokens, 3 * heads[0] * head_size], 1.0)?;
    let part = |on: &mut On| on.output(&[tokens, heads[0] * head_size]);
    let (mut q, mut k, mut v) = (part(on)?, part(on)?, part(on)?);
    let (cos, sin) = table(kind, tokens as u32, head_size)?;
    let (cos, sin) = (on.moved(cos)?, on.moved(sin)?);
    rope::forward_split([&mut q, &mut k, &mut v], &qkv, &cos, &sin, heads)?;
    let mut gradients = Vec::new();
    for _ in 0..3 {
        gradients.push(on.random(q.shape(), 1.0)?);
    }
    let mut dqkv = on.output(qkv.shape())?;
    if let [dq, dk, dv] = &mut gradients[..] {
        rope::backward_split(&mut dqkv, [dq, dk, dv], &cos, &sin, heads)?;
    }
    let tolerance = || Tolerance::stored(on.dtype, 1.0);
    let named = [("(q)", q), ("(k)", k), ("(v)", v), ("(dqkv)", dqkv)];
    Ok(named.map(|(name, tensor)| Output::new(name, tensor, tolerance())).into())
}

fn table(kind: Kind, tokens: u32, head_size: usize) -> Result<(Tensor, Tensor)> {
    match kind {
        Kind::Line(rotated) => rope::table(&(0..tokens).collect::<Vec<_>>(), 1e5, rotated),
        Kind::Sections(sections) => {
            let positions: Vec<_> = (0..tokens).map(|i| [i / 64, i / 8 % 8, i % 8]).collect();
            rope::table_mrope(&positions, sections, 1e6, head_size)
        }
        Kind::Plane => {
            let positions: Vec<_> = (0..tokens).map(|i| [i / 32, i % 32]).collect();
            rope::table_2d(&positions, 1e4, head_size)
        }
    }
}
