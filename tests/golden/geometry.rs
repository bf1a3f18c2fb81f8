//! Resize and tiling arithmetic with the published settings.

use mpa::models::image::ImageProcessor;
use serde_json::{Value, json};

use super::set::{json as read, sets};

/// The keys of geometry.json that are ours: tile and longest edge.
const SETTINGS: [(&str, usize, usize); 2] =
    [("smolvlm_512_2048", 512, 2048), ("smolvlm2_384_1536", 384, 1536)];

pub fn check() {
    for set in sets() {
        let sizes = read(&set.join("geometry.json"));
        for (key, tile, longest) in SETTINGS {
            let processor = processor(tile, longest);
            for size in sizes.as_array().unwrap() {
                let number = |key: &str| size[key].as_u64().unwrap() as usize;
                let (width, height) = (number("width"), number("height"));
                let plan = processor.plan(width, height);
                let got = json!({
                    "first_resize": [plan.first.1, plan.first.0],
                    "second_resize": [plan.second.1, plan.second.0],
                    "rows": plan.rows,
                    "cols": plan.cols,
                });
                assert_eq!(got, size[key], "{}: {key} {width}x{height}", set.display());
            }
        }
    }
}

fn processor(tile: usize, longest: usize) -> ImageProcessor {
    let settings = Value::from_iter([
        ("image_processor_type", json!("Idefics3ImageProcessor")),
        ("size", json!({"longest_edge": longest})),
        ("max_image_size", json!({"longest_edge": tile})),
    ]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
    ImageProcessor::read(folder.path()).unwrap()
}
