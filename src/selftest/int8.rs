//! What is quantised: rows, products of int8, and norms that quantise.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::gemm_int8::{self, Quantized};
use crate::ops::{layer_norm, quantize, rms_norm};
use crate::selftest::on::On;
use crate::tensor::{DType, Tensor};

const EPS: f32 = 1e-5;
const SAME: &str = "integers, and f32 operations that are not fused";

/// Rows and columns.
const ROWS_QUICK: &[(usize, usize)] = &[(1, 1), (5, 3), (7, 961), (9, 100), (3, 2064)];
const ROWS: &[(usize, usize)] = &[(2048, 3584), (32, 18944), (1024, 1280)];

/// M, N, K: kernels for few rows, tiles of every size, K that is aligned and not.
const QUICK: &[[usize; 3]] =
    &[[1, 1, 1], [3, 40, 96], [17, 33, 530], [70, 66, 100], [129, 65, 144], [66, 4, 1040]];
const FULL: &[[usize; 3]] = &[
    [1, 18944, 3584],
    [8, 3584, 18944],
    [32, 512, 3584],
    [40, 3584, 3584],
    [1000, 1536, 1536],
    [256, 8960, 1536],
    [1024, 4096, 512],
    [130, 16320, 104],
];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let (rows, products) = if size.quick() { (&[][..], &[][..]) } else { (ROWS, FULL) };
    let mut cases = Vec::new();
    for &(rows, cols) in ROWS_QUICK.iter().chain(rows) {
        let shape = format!("{rows} x {cols}");
        for rotation in rotations(cols) {
            let shape = format!("{shape} rotated {rotation}");
            cases.push(Case::new("quantize", &shape, move |on| rows_of(on, rows, cols, rotation)));
            cases.push(Case::new("rms_norm quantized", &shape, move |on| rms(on, rows, cols, rotation)));
        }
        cases.push(Case::new("layer_norm quantized", &shape, move |on| layer(on, rows, cols)));
    }
    for &sizes in QUICK.iter().chain(products) {
        let [m, n, k] = sizes;
        let shape = format!("{m} x {n} x {k}");
        cases.push(Case::new("gemm_int8", &shape, move |on| product(on, sizes)));
        let fused = Case::new("gemm_int8 swiglu", &shape, move |on| swiglu(on, sizes));
        // It takes and gives int8, whatever the type of the activations.
        cases.push(Case { types: &[DType::Bf16], ..fused });
    }
    cases
}

/// None, and the largest that the models ask for.
fn rotations(cols: usize) -> Vec<usize> {
    let mut all = vec![1, quantize::rotation(cols, quantize::MOST_ROTATED)];
    all.dedup();
    all
}

/// Elements and scales to write to: what is not overwritten shows in the scales.
fn outputs(on: &mut On, rows: usize, cols: usize) -> Result<(Tensor, Tensor)> {
    let scale = on.output_f32(&[rows])?;
    Ok((on.moved(Tensor::from_i8(&[rows, cols], vec![99; rows * cols])?)?, scale))
}

fn rows_of(on: &mut On, rows: usize, cols: usize, rotation: usize) -> Result<Vec<Output>> {
    let x = on.random(&[rows, cols], 3.0)?;
    let (mut q, mut scale) = outputs(on, rows, cols)?;
    quantize::forward(&mut q, &mut scale, &x, rotation)?;
    let exact = || Tolerance::exact(SAME);
    Ok(vec![Output::new("q", q.to_f32()?, exact()), Output::new("scale", scale, exact())])
}

fn rms(on: &mut On, rows: usize, cols: usize, rotation: usize) -> Result<Vec<Output>> {
    let (mut x, weight) = (on.random(&[rows, cols], 1.0)?, on.random(&[cols], 2.0)?);
    let (mut q, mut scale) = outputs(on, rows, cols)?;
    rms_norm::forward_quantized(&mut q, &mut scale, &mut x, None, &weight, EPS, rotation)?;
    Ok(vec![
        Output::new("q", q.to_f32()?, Tolerance::exact(SAME)),
        Output::new("scale", scale, Tolerance::norm(DType::F32, 0.02)),
    ])
}

fn layer(on: &mut On, rows: usize, cols: usize) -> Result<Vec<Output>> {
    let mut x = on.random(&[rows, cols], 1.0)?;
    let (weight, bias) = (on.random(&[cols], 2.0)?, on.random(&[cols], 1.0)?);
    let (mut q, mut scale) = outputs(on, rows, cols)?;
    layer_norm::forward_quantized(&mut q, &mut scale, None, &mut x, None, (&weight, &bias), EPS)?;
    Ok(vec![
        Output::new("q", q.to_f32()?, Tolerance::level("values at the middle of two levels")),
        Output::new("scale", scale, Tolerance::norm(DType::F32, 0.04)),
    ])
}

/// Elements of int8, and a scale a row.
fn matrix(on: &mut On, rows: usize, cols: usize, scale: f32) -> Result<(Tensor, Tensor)> {
    let q = on.indices(rows * cols, 255).iter().map(|&i| (i as i32 - 127) as i8).collect();
    Ok((on.moved(Tensor::from_i8(&[rows, cols], q)?)?, on.random_f32(&[rows], scale / 127.0)?))
}

fn view((q, scale): &(Tensor, Tensor)) -> Quantized<'_> {
    Quantized { q, scale }
}

fn product(on: &mut On, [m, n, k]: [usize; 3]) -> Result<Vec<Output>> {
    let (x, weight) = (matrix(on, m, k, 1.0)?, matrix(on, n, k, small(k))?);
    let (bias, residual) = (on.random(&[n], 1.0)?, on.random(&[m, n], 1.0)?);
    let mut y = on.output(&[m, n])?;
    gemm_int8::forward(&mut y, view(&x), view(&weight), Some(&bias), Some(&residual))?;
    Output::one(y, Tolerance::exact(SAME).store(on.dtype))
}

/// Weights of about 1 / sqrt(K), so that outputs are of about 1.
fn small(k: usize) -> f32 {
    1.0 / (k as f32).sqrt()
}

fn swiglu(on: &mut On, [m, n, k]: [usize; 3]) -> Result<Vec<Output>> {
    let x = matrix(on, m, k, 3.0)?;
    let (gate, up) = (matrix(on, n, k, small(k))?, matrix(on, n, k, small(k))?);
    let (mut q, mut scale) = outputs(on, m, n)?;
    gemm_int8::forward_swiglu(&mut q, &mut scale, view(&x), view(&gate), view(&up), 1)?;
    Ok(vec![
        Output::new(
            "q",
            q.to_f32()?,
            Tolerance::level("the activation, and the row's largest, rounded to bf16"),
        ),
        Output::new("scale", scale, Tolerance::stored(DType::Bf16, 0.02)),
    ])
}
