//! int8 models: how near they are, that a folder and a model in memory are the same, and that nothing wrong is loaded.
#[path = "../common/mod.rs"]
mod common;
mod folders;
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/models.rs"]
mod models;
mod smoothing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::Rng;
use mpa::models::adapter;
use mpa::models::generate::Request;
use mpa::models::image::Rgb;
use mpa::models::int8::{Parts, ROTATION};
use mpa::models::linear::{Linear, Pass};
use mpa::models::prompt::{Content, Message};
use mpa::models::vlm::{Prompt, Vlm};
use mpa::models::weight::Weight;
use mpa::ops::sample::Sampling;
use mpa::quant::Folds;
use mpa::tensor::{DType, Device, Gpu, Tensor};

const FAMILIES: [&str; 2] = ["smolvlm", "qwen2vl"];
const PARTS: [Parts; 3] = [Parts::Text, Parts::TextHead, Parts::All];

pub fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family)
}

pub fn load(folder: &Path) -> Vlm {
    Vlm::load(folder.to_str().unwrap(), None).unwrap()
}

pub fn quantized(folder: &Path, parts: Parts, folds: &Folds) -> Vlm {
    let mut vlm = load(folder);
    vlm.quantize(parts, folds, ROTATION).unwrap();
    vlm
}

pub fn picture() -> Rgb {
    Rgb { width: 61, height: 47, data: (0..61 * 47 * 3).map(|i| (i * 7 % 251) as u8).collect() }
}

/// Logits of all tokens of a prompt with a picture.
pub fn logits(vlm: &Vlm) -> Tensor {
    let side = vlm.vision().unwrap();
    let tiles = side.images.process(&picture()).unwrap();
    let content = vec![Content::Image, Content::Text("What does the sign say?".into())];
    let grids = [(tiles.rows, tiles.cols)];
    let ids = vlm.encode(&[Message::new("user", content)], &grids, true).unwrap();
    let features = vlm.features(&[&tiles]).unwrap();
    let states = vlm.states(&Prompt { ids: &ids, features: features.iter().collect() }, &grids).unwrap();
    vlm.text.logits(states, Pass::Infer).unwrap().0
}

/// The deviation of `got` from `want`, as a share of the deviation of `want` from its mean.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (got.f32s().unwrap(), want.f32s().unwrap());
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()), "logits that are no numbers");
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / want.len() as f64;
    let spread: f64 = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let error: f64 = want.iter().zip(got).map(|(&w, &g)| (f64::from(w) - f64::from(g)).powi(2)).sum();
    (error / spread).sqrt()
}

/// Rounding to a grid of step d has the deviation d / sqrt(12), and d = max / 127. A product of K terms whose factors are rounded so is off by
/// sqrt(crest(x)^2 + crest(w)^2) / (127 sqrt(12)) of its own deviation, crest = max / deviation: below 5 for both at the widths of these models, so
/// 1.6 %. What `products` in a row leave grows as their root; a factor of 3 for what norms, the softmax and the gates make of it.
fn allowed(products: usize) -> f64 {
    3.0 * 50.0_f64.sqrt() / (127.0 * 12.0_f64.sqrt()) * (products as f64).sqrt()
}

#[test]
fn logits_are_near_those_in_floating_point() {
    for family in FAMILIES {
        let folder = golden(family);
        let dense = load(&folder);
        let want = logits(&dense);
        // In a row: q or v, o, gate or up, down of each block; the head; twice as much in the vision tower and its connector's two.
        let text = 4 * dense.config.text.layers;
        let vision = 4 * dense.config.vision.as_ref().unwrap().layers + 2;
        for (parts, products) in PARTS.into_iter().zip([text, text + 1, text + vision + 1]) {
            let error = relative_error(&logits(&quantized(&folder, parts, &Folds::new())), &want);
            assert!(error > 1e-4, "{family}, {parts:?}: nothing was rounded ({error})");
            assert!(error < allowed(products), "{family}, {parts:?}: off by {error}");
        }
    }
}

#[test]
fn a_layer_is_off_by_its_roundings_alone() {
    let mut rng = Rng(1);
    for [m, n, k] in [[1, 1, 1], [3, 5, 64], [7, 33, 129]] {
        let (x, w) = (rng.tensor(&[m, k], 3.0), rng.tensor(&[n, k], 0.2));
        let dense = Linear::new(w.clone());
        let mut int8 = Linear::new(w.clone());
        int8.weight.quantize(None, ROTATION).unwrap();
        let (want, _) = dense.forward(&x, Pass::Infer).unwrap();
        let (got, _) = int8.forward(&x, Pass::Infer).unwrap();
        let (x, w) = (x.f32s().unwrap(), w.f32s().unwrap());
        let most = |row: &[f32]| row.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for i in 0..m * n {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            // Half a step each, and a little for f32.
            let (dx, dw) = (0.5001 * most(x) / 127.0, 0.5001 * most(w) / 127.0);
            let bound: f32 = x.iter().zip(w).map(|(x, w)| x.abs() * dw + w.abs() * dx + dx * dw).sum();
            let off = (got.f32s().unwrap()[i] - want.f32s().unwrap()[i]).abs();
            assert!(off <= bound + 1e-5, "[{m}, {n}, {k}] at {i}: off by {off}, at most {bound}");
        }
    }
}

#[test]
fn a_group_reads_what_each_layer_reads() {
    let mut rng = Rng(2);
    let layers = [8, 3, 5].map(|n| {
        let mut layer = Linear::new(rng.tensor(&[n, 16], 0.5));
        layer.weight.quantize(None, ROTATION).unwrap();
        layer
    });
    let x = rng.tensor(&[6, 16], 2.0);
    let [a, b, c] = &layers;
    let group = Linear::forward_group([a, b, c], &x, Pass::Infer).unwrap();
    for ((together, _), layer) in group.iter().zip(&layers) {
        let (alone, _) = layer.forward(&x, Pass::Infer).unwrap();
        assert_eq!(together.f32s().unwrap(), alone.f32s().unwrap());
    }
}

#[test]
fn the_right_layers_are_int8() {
    for family in FAMILIES {
        for parts in PARTS {
            let mut vlm = quantized(&golden(family), parts, &Folds::new());
            assert!(vlm.is_int8());
            vlm.visit_linears(&mut |name, linear| {
                let text = name.contains(".layers.") && name.contains("_proj") && !name.contains("vision");
                let wanted = text || parts == Parts::All || (parts == Parts::TextHead && name == "lm_head");
                assert_eq!(linear.weight.is_int8(), wanted, "{family}, {parts:?}: {name}");
            });
            assert_eq!(vlm.text.is_tied(), family == "qwen2vl" && parts == Parts::Text && is_tied(family));
        }
    }
}

fn is_tied(family: &str) -> bool {
    load(&golden(family)).text.is_tied()
}

fn request(text: &str) -> Request {
    Request {
        messages: vec![Message::new("user", vec![Content::Image, Content::Text(text.to_string())])],
        images: vec![Arc::new(picture())],
        tiles: vec![],
        draft: None,
        max_new_tokens: 7,
        sampling: Sampling { temperature: 0.0, top_p: 1.0 },
        samples: 1,
        seed: 0,
    }
}

#[test]
fn neighbours_change_nothing() {
    for family in FAMILIES {
        let vlm = quantized(&golden(family), Parts::All, &Folds::new());
        let requests =
            ["Ask.", "What is on it, and what does the longer of two signs say?", "Why?"].map(request);
        let together = vlm.generate(&requests).unwrap();
        for (request, together) in requests.iter().zip(together) {
            let alone = vlm.generate(std::slice::from_ref(request)).unwrap().remove(0);
            assert_eq!(alone, together, "{family}");
        }
    }
}

#[test]
fn an_adapter_stays_in_floating_point_on_top() {
    let folder = golden("smolvlm");
    let fixture = folder.join("fixtures/lora/all/adapter_final");
    let mut dense = load(&folder);
    let mut int8 = quantized(&folder, Parts::TextHead, &Folds::new());
    let without = logits(&dense);
    adapter::load(&mut dense, &fixture).unwrap();
    adapter::load(&mut int8, &fixture).unwrap();
    let (want, got) = (logits(&dense), logits(&int8));
    let error = relative_error(&got, &want);
    assert!(error < allowed(4 * dense.config.text.layers + 1), "off by {error}");
    assert!(relative_error(&without, &want) > 2.0 * error, "the adapter changes too little to be seen");
}

#[test]
fn a_gpu_gets_int8_as_it_is() {
    let gpu = Device::Cuda(Gpu::dry());
    let mut vlm =
        quantized(&golden("smolvlm"), Parts::TextHead, &Folds::new()).to_device(&gpu, DType::Bf16).unwrap();
    let mut seen = 0;
    vlm.visit_linears(&mut |_, linear| match &linear.weight {
        Weight::Int8 { q, scale, .. } => {
            assert_eq!((q.value.dtype(), scale.value.dtype()), (DType::I8, DType::F32));
            seen += 1;
        }
        Weight::Dense(weight) => assert_eq!(weight.value.dtype(), DType::Bf16),
    });
    assert_eq!(seen, 7 * 3 + 1);
    vlm.visit(&mut |name, param| assert!(param.value.gpu().is_some(), "{name}"));
}

/// What an error says, having checked whose fault it is.
#[track_caller]
pub fn complaint<T>(result: mpa::error::Result<T>) -> String {
    let error = result.err().expect("an error");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

#[test]
fn what_needs_floating_point_says_so() {
    let folder = golden("smolvlm");
    let mut vlm = quantized(&folder, Parts::Text, &Folds::new());
    adapter::load(&mut vlm, &folder.join("fixtures/lora/all/adapter_final")).unwrap();
    let said = complaint(adapter::merge(&mut vlm));
    assert!(said.contains("int8") && said.contains("merge first"), "{said}");

    let said = complaint(vlm.quantize(Parts::Text, &Folds::new(), ROTATION));
    assert!(said.contains("int8 already"), "{said}");

    let out = tempfile::tempdir().unwrap();
    let said = complaint(vlm.save(&out.path().join("saved")));
    assert!(said.contains("mpa quantize"), "{said}");
    assert!(!out.path().join("saved").exists());
}

#[test]
fn training_takes_no_int8_model() {
    use mpa::train::fit::{LoraOptions, TrainOptions, Trainable, Trainer};
    for trainable in
        [Trainable::Lora(LoraOptions::default()), Trainable::Full(vec![mpa::train::fit::Tower::Text])]
    {
        let vlm = quantized(&golden("smolvlm"), Parts::Text, &Folds::new());
        let said = complaint(Trainer::new(vlm, trainable, TrainOptions::default()));
        assert!(said.contains("int8") && said.contains("floating point"), "{said}");
    }
}
