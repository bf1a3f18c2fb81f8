//! The processor against the fixtures, bit for bit, and its settings.

use std::path::Path;

use mpa::models::image::{Filter, ImageProcessor, Rgb, resize};
use proptest::prelude::*;
use serde_json::{Value, json};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// SmolVLM's settings with some of them replaced.
fn settings(changes: Value) -> Value {
    let path = Path::new(GOLDEN).join("smolvlm/preprocessor_config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (key, new) in changes.as_object().unwrap() {
        value[key] = new.clone();
    }
    value
}

fn read(value: &Value) -> mpa::error::Result<ImageProcessor> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("preprocessor_config.json"), value.to_string()).unwrap();
    ImageProcessor::read(folder.path())
}

/// A picture of any size whose values depend on the place.
fn pattern(width: usize, height: usize) -> Rgb {
    let data = (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect();
    Rgb { width, height, data }
}

/// A picture whose rows differ, so that the order of the two passes shows.
fn rows(width: usize, height: usize) -> Rgb {
    let value = |i: usize| (i * 37 % 251 * (1 + i / (3 * width) % 7) % 256) as u8;
    Rgb { width, height, data: (0..width * height * 3).map(value).collect() }
}

/// Against Pillow 13.0.0, by a polynomial hash of all bytes: sizes on both sides of the rule by which it resamples columns first.
#[test]
fn resampling_has_pillows_bits_in_either_order() {
    for (from, to, filter, want) in [
        ((50, 400), (80, 224), Filter::Lanczos, 0x60e1_c311_3564_e4b2),
        ((83, 61), (84, 56), Filter::Bicubic, 0xec44_8b76_a423_1846),
        ((300, 217), (288, 224), Filter::Bicubic, 0x3fe5_bff2_2303_be4d),
        ((300, 224), (288, 200), Filter::Bicubic, 0xf3cf_8c10_cf90_cd63),
        ((300, 225), (288, 200), Filter::Bilinear, 0x1ce6_e549_0e39_9166),
        ((300, 226), (288, 200), Filter::Bicubic, 0x4f3a_2c33_4b86_4ba8),
        ((37, 90), (90, 37), Filter::Lanczos, 0x4f95_f3ab_2355_4cd3),
        ((90, 37), (37, 90), Filter::Bilinear, 0xecb5_6c99_61e5_db7a),
        ((61, 83), (60, 82), Filter::Bicubic, 0xa18b_55ed_9468_1094_u64),
        ((61, 84), (60, 81), Filter::Bicubic, 0x10ab_64bd_e40f_a3d3),
    ] {
        let resized = resize(&rows(from.0, from.1), to.0, to.1, filter).unwrap();
        let hash = resized.data.iter().fold(0u64, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        assert_eq!(hash, want, "{from:?} to {to:?} {filter:?}");
    }
}

#[test]
fn odd_sizes_become_tiles() {
    let processor = read(&settings(json!({}))).unwrap();
    for (width, height) in
        [(1, 1), (1, 37), (37, 1), (2, 3), (48, 48), (144, 144), (145, 7), (1, 1000), (1000, 1)]
    {
        let tiles = processor.process(&pattern(width, height)).unwrap();
        let pixels = tiles.normalised().unwrap();
        assert_eq!(pixels.shape(), [tiles.rows * tiles.cols + 1, 3, 48, 48], "{width}x{height}");
        assert!(pixels.f32s().unwrap().iter().all(|v| (-1.0..=1.0).contains(v)), "{width}x{height}");
    }
}

#[test]
fn one_tile_is_not_a_grid() {
    let processor = read(&settings(json!({"do_resize": false}))).unwrap();
    let small = processor.process(&pattern(30, 20)).unwrap();
    assert_eq!((small.rows, small.cols, small.pixels.count()), (0, 0, 1));
    let large = processor.process(&pattern(49, 20)).unwrap();
    assert_eq!((large.rows, large.cols, large.pixels.count()), (1, 2, 3));
}

#[test]
fn flags_leave_steps_out() {
    let white = Rgb { width: 48, height: 48, data: vec![255; 48 * 48 * 3] };
    let value = |changes| {
        let tiles = read(&settings(changes)).unwrap().process(&white).unwrap();
        tiles.normalised().unwrap().f32s().unwrap()[0]
    };
    assert_eq!(value(json!({})), 1.0);
    assert_eq!(value(json!({"do_normalize": false})), 1.0);
    assert_eq!(value(json!({"do_rescale": false})), 509.0);
    assert_eq!(value(json!({"do_rescale": false, "do_normalize": false})), 255.0);
    assert_eq!(value(json!({"image_mean": 0.25, "image_std": [0.25, 1, 1]})), 3.0);
}

#[test]
fn missing_keys_have_the_defaults_of_the_class() {
    let bare = read(&json!({"image_processor_type": "Idefics3ImageProcessor", "size": null})).unwrap();
    let full = json!({"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}, "rescale_factor": 1.0 / 255.0});
    assert_eq!(bare, read(&settings(full)).unwrap());
}

#[test]
fn processor_config_may_hold_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let nested = json!({"image_seq_len": 4, "image_processor": settings(json!({}))});
    std::fs::write(folder.path().join("processor_config.json"), nested.to_string()).unwrap();
    assert_eq!(ImageProcessor::read(folder.path()).unwrap(), read(&settings(json!({}))).unwrap());
}

#[test]
fn wrong_settings_name_file_and_key() {
    for (changes, key) in [
        (json!({"image_processor_type": "CLIPImageProcessor"}), "image_processor_type"),
        (json!({"image_processor_type": null}), "image_processor_type"),
        (json!({"resample": 0}), "resample"),
        (json!({"do_resize": 1}), "do_resize"),
        (json!({"size": {"shortest_edge": 3}}), "size"),
        (json!({"size": {"longest_edge": 0}}), "size.longest_edge"),
        (json!({"size": {"longest_edge": 1e12}}), "size.longest_edge"),
        (json!({"max_image_size": {"longest_edge": -4}}), "max_image_size.longest_edge"),
        (json!({"max_image_size": 364}), "max_image_size"),
        (json!({"image_mean": [0.5, 0.5]}), "image_mean"),
        (json!({"image_std": [0.5, 0.0, 0.5]}), "image_std"),
        (json!({"rescale_factor": "1/255"}), "rescale_factor"),
    ] {
        let error = read(&settings(changes)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let message = error.to_string();
        assert!(message.contains("preprocessor_config.json") && message.contains(key), "{key}: {message}");
    }
}

#[test]
fn impossible_pictures_are_errors() {
    let processor = read(&settings(json!({"do_resize": false}))).unwrap();
    for (width, height, bytes) in [(0, 0, 0), (2, 2, 11), (usize::MAX, 2, 6), (0, 5, 0)] {
        assert!(processor.process(&Rgb { width, height, data: vec![0; bytes] }).is_err(), "{width}x{height}");
    }
    assert!(resize(&pattern(1 << 20, 2), 48, 48, Filter::Lanczos).is_ok());
    assert!(processor.process(&pattern((1 << 20) + 1, 1)).is_err());
    assert!(resize(&pattern(2, 2), 1 << 14, 1 << 14, Filter::Bicubic).is_err());
}

/// Constant pictures stay constant under every filter (the weights of a window sum to 1 within rounding), and the same size changes nothing.
#[test]
fn resampling_keeps_what_it_must() {
    for filter in [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic] {
        for value in [0, 1, 127, 255] {
            let flat = Rgb { width: 7, height: 5, data: vec![value; 7 * 5 * 3] };
            for (width, height) in [(1, 1), (3, 2), (20, 31), (7, 9)] {
                let out = resize(&flat, width, height, filter).unwrap();
                assert_eq!((out.width, out.height), (width, height));
                assert!(out.data.iter().all(|&v| v == value), "{filter:?} {value} {width}x{height}");
            }
        }
        let picture = pattern(13, 11);
        assert_eq!(resize(&picture, 13, 11, filter).unwrap(), picture);
    }
}

/// A value that a settings file may hold by mistake.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..9000).prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            inner.clone().prop_map(|v| json!({"longest_edge": v})),
            (inner.clone(), inner).prop_map(|(w, h)| json!({"width": w, "height": h})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Settings of any kind are an error or can be worked with.
    #[test]
    fn any_settings_do_no_harm(
        key in prop::sample::select(vec!["image_processor_type", "do_resize", "size", "max_image_size", "resample",
            "do_image_splitting", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"]),
        value in any_json(),
        (width, height) in (1usize..40, 1usize..40),
    ) {
        match read(&settings(json!({ key: value }))) {
            Err(error) => prop_assert!(error.exit_code() == 2 && error.to_string().contains(key), "{error}"),
            Ok(processor) => {
                let plan = processor.plan(width, height).unwrap();
                prop_assert!([plan.second.0, plan.second.1].iter().all(|side| side.is_multiple_of(processor.tile_side())));
                // Larger settings are as good, but too slow for a test in which they come often.
                if plan.second.0 * plan.second.1 < 1 << 16 {
                    prop_assert!(processor.process(&pattern(width, height)).is_ok());
                }
            }
        }
    }
}
