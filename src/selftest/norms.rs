//! rms_norm and layer_norm, alone and with the residual added first.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::{add, layer_norm, rms_norm};
use crate::selftest::on::On;
use crate::tensor::Tensor;

const EPS: f32 = 1e-5;

/// Rows and columns.
const QUICK: &[(usize, usize)] = &[(1, 1), (5, 3), (7, 961), (9, 100), (6, 960)];
const RMS: &[(usize, usize)] = &[(1024, 960), (32, 960), (1024, 1536), (1000, 3584)];
const LAYER: &[(usize, usize)] = &[(17 * 1024, 768), (1024, 1152), (1024, 1280)];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let with = |full: &'static [(usize, usize)]| {
        let full = if size.quick() { &[] } else { full };
        QUICK.iter().chain(full).copied()
    };
    let mut cases = Vec::new();
    for (rows, cols) in with(RMS) {
        let shape = format!("{rows} x {cols}");
        cases.push(Case::new("rms_norm", &shape, move |on| rms(on, rows, cols)));
        cases.push(Case::new("rms_norm residual", &shape, move |on| rms_residual(on, rows, cols)));
    }
    for (rows, cols) in with(LAYER) {
        let shape = format!("{rows} x {cols}");
        cases.push(Case::new("layer_norm", &shape, move |on| layer(on, rows, cols)));
        cases.push(Case::new("layer_norm residual", &shape, move |on| layer_residual(on, rows, cols)));
    }
    cases
}

fn rms(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (x, weight) = (on.random(&[rows, cols], 1.0)?, on.random(&[cols], 2.0)?);
    let mut out = on.output(&[rows, cols])?;
    rms_norm::forward(&mut out, &x, &weight, EPS)?;
    Output::one(out, Tolerance::norm(on.dtype, 2.0))
}

fn rms_residual(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let (x, weight) = (on.random(&[rows, cols], 1.0)?, on.random(&[cols], 2.0)?);
    with_residual(on, x, |on, out, x, residual| {
        if on.is_reference() {
            return rms_norm::forward(out, x, &weight, EPS);
        }
        rms_norm::forward_residual(out, x, residual, &weight, EPS)
    })
}

fn layer(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let x = on.random(&[rows, cols], 1.0)?;
    let (weight, bias) = (on.random(&[cols], 2.0)?, on.random(&[cols], 1.0)?);
    let mut out = on.output(&[rows, cols])?;
    layer_norm::forward(&mut out, &x, &weight, &bias, EPS)?;
    Output::one(out, Tolerance::norm(on.dtype, 4.0))
}

fn layer_residual(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let x = on.random(&[rows, cols], 1.0)?;
    let (weight, bias) = (on.random(&[cols], 2.0)?, on.random(&[cols], 1.0)?);
    with_residual(on, x, |on, out, x, residual| {
        if on.is_reference() {
            return layer_norm::forward(out, x, &weight, &bias, EPS);
        }
        layer_norm::forward_residual(out, x, residual, &weight, &bias, EPS)
    })
}

/// The norm is that of the sum as it is stored: so the reference gets that as its x, and adds nothing to it.
fn with_residual(
    on: &mut On,
    mut x: Tensor,
    norm: impl Fn(&On, &mut Tensor, &mut Tensor, &Tensor) -> Result<()>,
) -> Result<Vec<Output>> {
    let residual = on.random(x.shape(), 1.0)?;
    let mut out = on.output(x.shape())?;
    if on.is_reference() {
        add::forward(&mut x, &residual)?;
        let sum = x.clone();
        x = on.as_stored(&x)?;
        norm(on, &mut out, &mut x, &residual)?;
        x = sum;
    } else {
        norm(on, &mut out, &mut x, &residual)?;
    }
    Ok(vec![
        Output::new("", out, Tolerance::norm(on.dtype, 4.0)),
        Output::new("(sum)", x, Tolerance::stored(on.dtype, 1.0)),
    ])
}
