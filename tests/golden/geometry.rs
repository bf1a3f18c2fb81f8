//! Resize and tiling arithmetic with the published settings.

use mpa::models::image::ImageProcessor;
use serde_json::{Value, json};

use super::set::{json as read, sets};

/// The keys of geometry.json for pictures that are left whole: least and most pixels, the published ones first.
const WHOLE: [(&str, usize, usize); 2] =
    [("qwen2vl_default", 56 * 56, 16_384 * 28 * 28), ("qwen2vl_256_1280", 256 * 28 * 28, 1280 * 28 * 28)];

/// Those for pictures cut into tiles: tile and longest edge.
const SETTINGS: [(&str, usize, usize); 2] =
    [("smolvlm_512_2048", 512, 2048), ("smolvlm2_384_1536", 384, 1536)];

pub fn check() {
    for set in sets() {
        let sizes = read(&set.join("geometry.json"));
        for (key, tile, longest) in SETTINGS {
            let processor = processor(&[
                ("image_processor_type", json!("Idefics3ImageProcessor")),
                ("size", json!({"longest_edge": longest})),
                ("max_image_size", json!({"longest_edge": tile})),
            ]);
            for size in sizes.as_array().unwrap() {
                let number = |key: &str| size[key].as_u64().unwrap() as usize;
                let (width, height) = (number("width"), number("height"));
                let plan = processor.plan(width, height).unwrap();
                let got = json!({
                    "first_resize": [plan.first.1, plan.first.0],
                    "second_resize": [plan.second.1, plan.second.0],
                    "rows": plan.rows,
                    "cols": plan.cols,
                });
                assert_eq!(got, size[key], "{}: {key} {width}x{height}", set.display());
            }
        }
        for (key, min, max) in WHOLE {
            let processor = processor(&[
                ("image_processor_type", json!("Qwen2VLImageProcessor")),
                ("min_pixels", json!(min)),
                ("max_pixels", json!(max)),
            ]);
            for size in sizes.as_array().unwrap() {
                let number = |key: &str| size[key].as_u64().unwrap() as usize;
                let (width, height) = (number("width"), number("height"));
                let plan = processor.plan(width, height).unwrap();
                let got = json!([plan.second.1, plan.second.0]);
                assert_eq!(got, size[key], "{}: {key} {width}x{height}", set.display());
            }
        }
    }
}

fn processor(settings: &[(&str, Value)]) -> ImageProcessor {
    let settings = Value::from_iter(settings.iter().cloned());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
    ImageProcessor::read(folder.path()).unwrap()
}
