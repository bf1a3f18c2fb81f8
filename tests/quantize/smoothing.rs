//! SmoothQuant.
use std::fs;

use mpa::models::int8::{self, Example, Parts, ROTATION};
use mpa::models::vlm::Vlm;
use mpa::models::weight::Weight;
use mpa::quant::{Fold, Folds, Group, Maxima, folds};

use super::{FAMILIES, PARTS, golden, load, logits, picture, quantized, relative_error};

fn examples() -> Vec<mpa::error::Result<Example>> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let start: String = text.chars().take(1500).collect();
    vec![Ok(Example::Picture(picture(), "What is it?".into())), Ok(Example::Text(start))]
}

fn calibrated(vlm: &mut Vlm, parts: Parts) -> Folds {
    int8::calibrate(vlm, parts, examples().into_iter()).unwrap()
}

/// Multiplies folds into a model that stays in floating point.
fn fold(vlm: &mut Vlm, folds: &Folds) {
    let mut left: Vec<&String> = folds.keys().collect();
    vlm.visit(&mut |name, param| {
        if let Some(fold) = folds.get(name) {
            param.value = fold.apply(&param.value).unwrap();
            left.retain(|other| *other != name);
        }
    });
    assert!(left.is_empty(), "names that the model does not have: {left:?}");
}

#[test]
fn folding_changes_no_bit() {
    for family in FAMILIES {
        for parts in PARTS {
            let mut vlm = load(&golden(family));
            let folds = calibrated(&mut vlm, parts);
            let moved =
                folds.values().flat_map(|f| f.columns.iter().flatten()).filter(|&&x| x != 1.0).count();
            assert!(moved > 100, "{family}: nothing to fold");
            let want = logits(&vlm);
            fold(&mut vlm, &folds);
            assert_eq!(logits(&vlm).f32s().unwrap(), want.f32s().unwrap(), "{family}, {parts:?}");
        }
    }
}

#[test]
fn a_calibrated_folder_is_the_model_that_is_quantised_while_it_is_loaded() {
    for family in FAMILIES {
        let folds = calibrated(&mut load(&golden(family)), Parts::All);
        let out = tempfile::tempdir().unwrap();
        int8::write(&mut load(&golden(family)), Parts::All, &folds, ROTATION, out.path()).unwrap();
        let (stored, loaded) = (load(out.path()), quantized(&golden(family), Parts::All, &folds));
        let (stored, loaded) = (logits(&stored), logits(&loaded));
        assert_eq!(stored.f32s().unwrap(), loaded.f32s().unwrap(), "{family}");
        assert!(relative_error(&stored, &logits(&load(&golden(family)))) < 0.3, "{family}");
    }
}

/// Makes one channel of every text norm a hundred times as large, and its weights as much smaller: the same model, with outliers.
fn with_outliers(vlm: &mut Vlm) {
    let scaled = |at: usize, len: usize, by: f32| {
        let mut factors = vec![1.0; len];
        factors[at] = by;
        Some(factors)
    };
    vlm.visit(&mut |name, param| {
        let width = param.value.cols();
        if name.contains("layernorm.weight") && !name.contains("vision") {
            param.value = Fold { rows: scaled(9, width, 128.0), columns: None }.apply(&param.value).unwrap();
        }
        let reads_norm =
            ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].iter().any(|p| name.contains(p));
        if reads_norm && name.ends_with("weight") && !name.contains("vision") {
            param.value =
                Fold { rows: None, columns: scaled(9, width, 1.0 / 128.0) }.apply(&param.value).unwrap();
        }
    });
}

#[test]
fn outliers_are_smoothed_or_spread() {
    let mut vlm = load(&golden("smolvlm"));
    let want = logits(&vlm);
    with_outliers(&mut vlm);
    assert_eq!(logits(&vlm).f32s().unwrap(), want.f32s().unwrap(), "the planted outliers change the model");
    let folds = calibrated(&mut vlm, Parts::Text);
    vlm.quantize(Parts::Text, &folds, 1).unwrap();
    let smooth = relative_error(&logits(&vlm), &want);
    let mut plain = load(&golden("smolvlm"));
    with_outliers(&mut plain);
    plain.quantize(Parts::Text, &Folds::new(), 1).unwrap();
    let plain = relative_error(&logits(&plain), &want);
    assert!(5.0 * smooth < plain, "off by {smooth} with smoothing, {plain} without");
    let mut rotated = load(&golden("smolvlm"));
    with_outliers(&mut rotated);
    rotated.quantize(Parts::Text, &Folds::new(), ROTATION).unwrap();
    let rotated = relative_error(&logits(&rotated), &want);
    assert!(2.0 * rotated < plain, "off by {rotated} rotated, {plain} as it is");
}

#[test]
fn grouped_heads_share_the_scales_of_a_value() {
    let group = Group {
        makers: vec!["v.weight".into(), "v.bias".into()],
        readers: vec!["o".into()],
        shared: (2, 2), // 2 key heads of size 2, 4 query heads
    };
    let inputs = Maxima::from([("o".into(), vec![4.0, 1.0, 16.0, 1.0, 1.0, 1.0, 1.0, 0.0])]);
    let weights = Maxima::from([("o".into(), vec![1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.25])]);
    let folds = folds(std::slice::from_ref(&group), &inputs, &weights).unwrap();
    // sqrt(16 / 1) for the first channel of key head 0, which query heads 0 and 1 read; the others 1.
    assert_eq!(folds["v.weight"], Fold { rows: Some(vec![0.25, 1.0, 1.0, 1.0]), columns: None });
    assert_eq!(folds["v.bias"], folds["v.weight"]);
    assert_eq!(folds["o.weight"].columns, Some(vec![4.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]));
}

#[test]
fn channels_without_anything_stay() {
    let group = |readers: &[&str]| Group {
        makers: vec!["n.weight".into()],
        readers: readers.iter().map(|r| r.to_string()).collect(),
        shared: (1, 1),
    };
    let inputs = Maxima::from([("a".into(), vec![0.0, 8.0, 0.0, 1e30, 9.0])]);
    let weights = Maxima::from([("a".into(), vec![1.0, 0.0, 0.0, 1e-30, 1.0])]);
    let found = folds(&[group(&["a"])], &inputs, &weights).unwrap();
    // sqrt(9) = 3 is nearer to 4 than to 2 by its logarithm.
    assert_eq!(found["a.weight"].columns, Some(vec![1.0, 1.0, 1.0, 256.0, 4.0]));
    let unknown = folds(&[group(&["b"])], &inputs, &weights);
    assert!(unknown.unwrap_err().to_string().contains('b'));
}

#[test]
fn a_calibration_leaves_the_model_as_it_was() {
    let mut vlm = load(&golden("smolvlm"));
    let want = logits(&vlm);
    calibrated(&mut vlm, Parts::All);
    vlm.visit_linears(&mut |name, linear| {
        assert!(linear.seen.is_none() && matches!(linear.weight, Weight::Dense(_)), "{name}");
    });
    assert_eq!(logits(&vlm).f32s().unwrap(), want.f32s().unwrap());
    let nothing = int8::calibrate(&mut vlm, Parts::Text, std::iter::empty());
    assert!(nothing.unwrap_err().to_string().contains("nothing to read"));
}
