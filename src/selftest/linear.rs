//! linear and lora.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::{linear, lora};
use crate::selftest::on::On;
use crate::tensor::{DType, Tensor};

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
    biased("SigLIP fc1", [1024, 3072, 768]),
    biased("SigLIP fc2", [1024, 768, 3072]),
    biased("Qwen2-VL-2B q", [512, 1536, 1536]),
    layer("Qwen2-VL-2B down", [512, 1536, 8960]),
    layer("Qwen2-VL-7B gate, decode", [8, 18944, 3584]),
    logits("Qwen2-VL-2B logits", [1, 151_936, 1536]),
];

/// M, N, K, R.
const LORA: &[[usize; 4]] =
    &[[3, 5, 7, 1], [33, 65, 40, 8], [1000, 2560, 960, 16], [1024, 1536, 8960, 32], [4, 960, 2560, 64]];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let full = if size.quick() { &[] } else { FULL };
    let layers = QUICK.iter().chain(full).map(|&l| {
        let shape = format!("{}, {} x {} x {}", l.name, l.m, l.n, l.k);
        Case::new("linear", shape, move |on| product(on, l))
    });
    let low_rank = &LORA[..if size.quick() { 2 } else { LORA.len() }];
    let updates = low_rank.iter().map(|&[m, n, k, r]| {
        Case::new("lora", format!("{m} x {n} x {k}, rank {r}"), move |on| update(on, [m, n, k, r]))
    });
    layers.chain(updates).collect()
}

/// Weights of about 1 / sqrt(K), so that outputs are of about 1.
fn small(k: usize) -> f32 {
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

fn update(on: &mut On, [m, n, k, r]: [usize; 4]) -> Result<Vec<Output>> {
    const SCALE: f32 = 2.0;
    let (x, a, b) = (on.random(&[m, k], 1.0)?, on.random(&[r, k], small(k))?, on.random(&[n, r], small(r))?);
    let (mut y, mut xa) = (on.random(&[m, n], 1.0)?, on.output(&[m, r])?);
    if on.is_reference() {
        // From x A^T as the device stores it.
        linear::forward(&mut xa, &x, &a, None)?;
        let mut change = Tensor::zeros(&[m, n]);
        linear::forward(&mut change, &on.as_stored(&xa)?, &b, None)?;
        for (y, change) in y.f32s_mut()?.iter_mut().zip(change.f32s()?) {
            *y += SCALE * change;
        }
    } else {
        lora::forward(&mut y, &mut xa, &x, &a, &b, SCALE)?;
    }
    // x A^T as stored may be a unit off here and there, where it lies between two numbers.
    let edge = if on.dtype == DType::Bf16 { 1.0 / 64.0 } else { 1e-6 };
    Ok(vec![
        Output::new("(x A^T)", xa, Tolerance::product(on.dtype, k, f64::from(small(k))).store(on.dtype)),
        Output::new(
            "",
            y,
            Tolerance::product(on.dtype, r, 1.0).store(on.dtype).plus(edge, "x A^T on an edge"),
        ),
    ])
}
