//! What only training runs, but for matrix products and attention: gradients of the small ops, cross-entropy, dropout, the optimizer.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::adamw::{Group, Hyper, Plan, Schedule, Trained};
use crate::ops::{
    clip_grad_norm, cross_entropy, dropout, embedding, gelu, layer_norm, pixel_shuffle, rms_norm, rope,
    swiglu,
};
use crate::selftest::on::On;
use crate::tensor::{DType, Indices, Tensor};

const EPS: f32 = 1e-5;

/// Rows and columns.
const QUICK: &[(usize, usize)] = &[(1, 1), (5, 3), (35, 100), (20, 961)];
const NORMS: &[(usize, usize)] = &[(4096, 960), (17 * 1024, 768), (1000, 3584)];
const WIDE: &[(usize, usize)] = &[(1024, 2560), (256, 18944), (4 * 1024, 3072)];
const LOGITS: &[(usize, usize)] = &[(512, 49280), (100, 151_936)];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let with = |full: &'static [(usize, usize)]| {
        let full = if size.quick() { &[] } else { full };
        QUICK.iter().chain(full).copied()
    };
    let mut cases = Vec::new();
    let mut add =
        |op, (rows, cols): (usize, usize), run: fn(&mut On, usize, usize) -> Result<Vec<Output>>| {
            cases.push(Case::new(op, format!("{rows} x {cols}"), move |on| run(on, rows, cols)));
        };
    for at in with(NORMS) {
        add("rms_norm backward", at, rms);
        add("layer_norm backward", at, layer);
        add("embedding backward", at, embed);
        add("splice backward", at, spliced);
    }
    for at in with(WIDE) {
        add("swiglu backward", at, gated);
        add("gelu backward", at, gelus);
        add("dropout", at, dropped);
        add("rope backward", at, turned);
        add("pixel_shuffle backward", at, shuffled);
        add("adamw", at, stepped);
        add("clip_grad_norm", at, length);
    }
    for at in with(LOGITS) {
        add("cross_entropy", at, losses);
    }
    cases
}

/// Sums over rows, of terms of about `term`, in f32.
fn sums(rows: usize, term: f64) -> Tolerance {
    Tolerance::product(DType::F32, rows, term)
}

fn rms(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (x, dy) = (on.random(&[rows, cols], 1.0)?, on.random(&[rows, cols], 1.0)?);
    let (weight, residual) = (on.random(&[cols], 2.0)?, on.random(&[rows, cols], 1.0)?);
    let (mut dx, mut dweight) = (on.output(&[rows, cols])?, on.random_f32(&[cols], 1.0)?);
    rms_norm::backward_residual(&mut dx, Some(&mut dweight), &dy, &x, &weight, &residual, EPS)?;
    // 1 / rms may be large where rows are short.
    let small = if cols < 8 { 400.0 } else { 8.0 };
    Ok(vec![
        Output::new("(dx)", dx, Tolerance::norm(on.dtype, small)),
        Output::new("(dweight)", dweight, sums(rows, 2.0)),
    ])
}

fn layer(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (x, dy) = (on.random(&[rows, cols], 1.0)?, on.random(&[rows, cols], 1.0)?);
    let (weight, residual) = (on.random(&[cols], 2.0)?, on.random(&[rows, cols], 1.0)?);
    let (mut dweight, mut dbias) = (on.random_f32(&[cols], 1.0)?, on.random_f32(&[cols], 1.0)?);
    let mut dx = on.output(&[rows, cols])?;
    let params = Some((&mut dweight, &mut dbias));
    layer_norm::backward_residual(&mut dx, params, &dy, &x, &weight, &residual, EPS)?;
    let small = if cols < 8 { 1000.0 } else { 12.0 };
    Ok(vec![
        Output::new("(dx)", dx, Tolerance::norm(on.dtype, small)),
        Output::new("(dweight)", dweight, sums(rows, 2.0)),
        Output::new("(dbias)", dbias, sums(rows, 1.0)),
    ])
}

fn gated(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (gate, up) = (on.random(&[rows, cols], 8.0)?, on.random(&[rows, cols], 2.0)?);
    let dout = on.random(&[rows, cols], 1.0)?;
    let (mut dgate, mut dup) = (on.output(&[rows, cols])?, on.output(&[rows, cols])?);
    swiglu::backward(&mut dgate, &mut dup, &dout, &gate, &up)?;
    let tolerance = || Tolerance::stored(on.dtype, 2.0);
    Ok(vec![Output::new("(dgate)", dgate, tolerance()), Output::new("(dup)", dup, tolerance())])
}

fn gelus(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (x, dy) = (on.random(&[rows, cols], 6.0)?, on.random(&[rows, cols], 1.0)?);
    let one = |kind| {
        let mut dx = on.output(&[rows, cols])?;
        gelu::backward(&mut dx, &dy, &x, kind)?;
        let name = match kind {
            gelu::Kind::Exact => "(exact)",
            gelu::Kind::Tanh => "(tanh)",
            gelu::Kind::Quick => "(quick)",
        };
        Ok(Output::new(name, dx, Tolerance::stored(on.dtype, 1.0)))
    };
    gelu::Kind::ALL.into_iter().map(one).collect()
}

fn dropped(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (x, mut out) = (on.random(&[rows, cols], 1.0)?, on.output(&[rows, cols])?);
    dropout::forward(&mut out, &x, 0.1, 7)?;
    Output::one(out, Tolerance::stored(on.dtype, 0.0))
}

/// Heads of 64 elements, or of fewer, twice for queries.
fn turned(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let head_size = 2 * cols.clamp(1, 32);
    let heads = cols.div_ceil(head_size);
    let mut dq = on.random(&[rows, 2 * heads * head_size], 1.0)?;
    let mut dk = on.random(&[rows, heads * head_size], 1.0)?;
    let (cos, sin) = rope::table(&(0..rows as u32).collect::<Vec<_>>(), 1e5, head_size)?;
    let (cos, sin) = (on.moved(cos)?, on.moved(sin)?);
    rope::backward_pair(&mut dq, &mut dk, &cos, &sin, [2 * heads, heads])?;
    let tolerance = || Tolerance::stored(on.dtype, 1.0);
    Ok(vec![Output::new("(dq)", dq, tolerance()), Output::new("(dk)", dk, tolerance())])
}

/// A table with fewer rows than there are tokens.
fn embed(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let vocabulary = rows.div_ceil(3);
    let ids = on.indices(rows, vocabulary);
    let (mut dtable, dy) = (on.random_f32(&[vocabulary, cols], 1.0)?, on.random(&[rows, cols], 1.0)?);
    embedding::backward(&mut dtable, &ids, &dy)?;
    Output::one(dtable, sums(32, 1.0))
}

/// Every other token has a feature, each of which is there twice or three times.
fn spliced(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let positions: Vec<u32> = (0..rows as u32).step_by(2).collect();
    let features = positions.len().div_ceil(2);
    let sources: Vec<u32> = (0..positions.len()).map(|i| (i % features) as u32).collect();
    let (mut dfeatures, mut dy) = (on.random(&[features, cols], 1.0)?, on.random(&[rows, cols], 1.0)?);
    embedding::splice_backward(&mut dfeatures, &mut dy, &positions, &sources)?;
    Ok(vec![
        Output::new("(dfeatures)", dfeatures, Tolerance::stored(on.dtype, 2.0)),
        Output::new("(dy)", dy, Tolerance::exact("a copy")),
    ])
}

/// Pictures of 4 x 4 patches.
fn shuffled(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (dy, mut dx) = (on.random(&[rows, 4, 4 * cols], 1.0)?, on.output(&[rows, 16, cols])?);
    pixel_shuffle::backward(&mut dx, &dy, 2)?;
    Output::one(dx, Tolerance::exact("a copy"))
}

/// Logits and losses are f32; the gradient has the device's type.
fn losses(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let logits = on.random_f32(&[rows, cols], 5.0)?;
    let targets = Indices::from(on.indices(rows, cols));
    let (mut losses, mut dlogits) = (on.output_f32(&[rows])?, on.output(&[rows, cols])?);
    cross_entropy::forward(&mut losses, Some(&mut dlogits), &logits, &targets, 0.5)?;
    Ok(vec![
        Output::new("(losses)", losses, Tolerance::norm(DType::F32, 4.0)),
        Output::new("(dlogits)", dlogits, Tolerance::stored(on.dtype, 0.0)),
    ])
}

/// The norm of two tensors' gradients.
fn length(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (a, b) = (on.random_f32(&[rows, cols], 1.0)?, on.random_f32(&[cols], 3.0)?);
    let norm = clip_grad_norm::norm(&[&a, &b])?;
    Output::one(Tensor::from_vec(&[1], vec![norm as f32])?, Tolerance::stored(DType::F32, 0.0))
}

/// Three clipped steps of two tensors.
fn stepped(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let hyper = Hyper { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    let schedule = Schedule::Cosine;
    let mut group = Group::new(Plan { schedule, peak: 1e-3, steps: 9, warmup: 0.2, max_norm: 1.0, hyper }, 0);
    let shapes = [[rows, cols], [cols, 1]];
    let mut weights = Vec::new();
    for shape in shapes {
        let (w, mut m, mut v) =
            (on.random_f32(&shape, 1.0)?, on.random_f32(&shape, 1.0)?, on.random_f32(&shape, 1.0)?);
        m.clear()?;
        v.clear()?;
        weights.push((w, m, v));
    }
    for _ in 0..3 {
        let mut grads = vec![on.random_f32(&shapes[0], 1.0)?, on.random_f32(&shapes[1], 1.0)?];
        let parts = weights.iter_mut().zip(&mut grads);
        let mut all: Vec<Trained> =
            parts.map(|((w, m, v), grad)| Trained { w, m, v, grad, rounded: None }).collect();
        group.step(&mut all)?;
    }
    let tolerance = || Tolerance::stored(DType::F32, 1.0);
    let outputs = weights.into_iter().map(|(w, ..)| Output::new("", w, tolerance()));
    Ok(outputs.collect())
}
