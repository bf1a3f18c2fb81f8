//! Products of a layer.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::linear;
use crate::selftest::on::On;
use crate::tensor::DType;

#[derive(Clone, Copy)]
struct Layer {
    name: &'static str,
    m: usize,
    n: usize,
    k: usize,
    bias: bool,
    /// The output is f32 whatever the inputs are.
    wide: bool,
}

const fn layer(name: &'static str, [m, n, k]: [usize; 3]) -> Layer {
    Layer { name, m, n, k, bias: false, wide: false }
}

const fn biased(name: &'static str, sizes: [usize; 3]) -> Layer {
    Layer { bias: true, ..layer(name, sizes) }
}

const fn logits(name: &'static str, sizes: [usize; 3]) -> Layer {
    Layer { wide: true, ..layer(name, sizes) }
}

const QUICK: &[Layer] = &[
    layer("one", [1, 1, 1]),
    biased("odd", [7, 33, 65]),
    biased("odd", [130, 67, 24]),
    layer("decode", [3, 40, 96]),
    layer("decode", [16, 70, 200]),
    logits("logits", [5, 130, 64]),
    logits("logits", [20, 65, 40]),
];
const FULL: &[Layer] = &[
    layer("SmolVLM-500M q", [1000, 960, 960]),
    layer("SmolVLM-500M k", [1000, 320, 960]),
    layer("SmolVLM-500M gate", [1024, 2560, 960]),
    layer("SmolVLM-500M down", [1024, 960, 2560]),
    layer("SmolVLM-500M gate, decode", [1, 2560, 960]),
    layer("SmolVLM-500M down, decode", [32, 960, 2560]),
    logits("SmolVLM-500M logits", [16, 49280, 960]),
    logits("SmolVLM-500M logits of a prompt, a part", [512, 12320, 960]),
    biased("SigLIP fc1", [1024, 3072, 768]),
    biased("SigLIP fc2", [1024, 768, 3072]),
    biased("Qwen2-VL-2B q", [512, 1536, 1536]),
    layer("Qwen2-VL-2B down", [512, 1536, 8960]),
    layer("Qwen2-VL-7B gate, decode", [8, 18944, 3584]),
    logits("Qwen2-VL-2B logits", [1, 151_936, 1536]),
];

/// M, N, K of a layer in training.
const BACKWARD: &[[usize; 3]] =
    &[[3, 5, 7], [70, 33, 24], [1000, 2560, 960], [1024, 960, 2560], [600, 320, 960], [512, 8960, 1536]];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let full = if size.quick() { &[] } else { FULL };
    let layers = QUICK.iter().chain(full).map(|&l| {
        let shape = format!("{}, {} x {} x {}", l.name, l.m, l.n, l.k);
        Case::new("linear", shape, move |on| product(on, l))
    });
    let trained = &BACKWARD[..if size.quick() { 2 } else { BACKWARD.len() }];
    let gradients = trained.iter().map(|&[m, n, k]| {
        Case::new("linear_backward", format!("{m} x {n} x {k}"), move |on| gradients(on, [m, n, k]))
    });
    layers.chain(gradients).collect()
}

/// Weights of about 1 / sqrt(K), so that outputs are of about 1.
pub(super) fn small(k: usize) -> f32 {
    1.0 / (k as f32).sqrt()
}

fn product(on: &mut On, Layer { m, n, k, bias, wide, .. }: Layer) -> Result<Vec<Output>> {
    let (x, weight) = (on.random(&[m, k], 1.0)?, on.random(&[n, k], small(k))?);
    let bias = if bias { Some(on.random(&[n], 1.0)?) } else { None };
    let mut y = if wide { on.output_f32(&[m, n])? } else { on.output(&[m, n])? };
    linear::forward(&mut y, &x, &weight, bias.as_ref())?;
    let stored = if wide { DType::F32 } else { on.dtype };
    Output::one(y, Tolerance::product(on.dtype, k, f64::from(small(k))).store(stored))
}

/// dx, and the gradients of the weights, onto what is there.
fn gradients(on: &mut On, [m, n, k]: [usize; 3]) -> Result<Vec<Output>> {
    let (dy, x, weight) = (on.random(&[m, n], 1.0)?, on.random(&[m, k], 1.0)?, on.random(&[n, k], small(n))?);
    let (mut dx, mut dx_f32) = (on.output(&[m, k])?, on.output_f32(&[m, k])?);
    linear::backward_input(&mut dx, &dy, &weight, false)?;
    linear::backward_input(&mut dx_f32, &dy, &weight, false)?;
    let (mut dweight, mut dbias) = (on.random_f32(&[n, k], 1.0)?, on.random_f32(&[n], 1.0)?);
    linear::backward_weight(&mut dweight, &dy, &x)?;
    linear::backward_bias(&mut dbias, &dy)?;
    let product = || Tolerance::product(on.dtype, n, f64::from(small(n)));
    Ok(vec![
        Output::new("dx", dx, product().store(on.dtype)),
        Output::new("dx in f32", dx_f32, product()),
        Output::new("dweight", dweight, Tolerance::product(on.dtype, m + 1, 1.0)),
        Output::new("dbias", dbias, Tolerance::product(DType::F32, m + 1, 1.0)),
    ])
}
