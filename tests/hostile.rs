//! The commands on what nobody gives them on purpose: pictures, files and places that are not as they should be.
use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn mpa(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpa"));
    command.current_dir(folder).args(args).output().unwrap()
}

/// What it says on stderr; it ends with `code`.
#[track_caller]
fn ends(folder: &Path, code: i32, args: &[&str]) -> String {
    let output = mpa(folder, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    stderr
}

fn records(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn png(path: &Path, width: u32, height: u32) {
    image::RgbImage::from_pixel(width, height, image::Rgb([200, 10, 10])).save(path).unwrap();
}

/// transformers refuses a picture with sides of more than 200 to 1, and Qwen2-VL with it: that is no reason to leave the others.
#[test]
fn a_picture_that_the_model_refuses_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, width) in [("a", 60), ("b", 5000), ("c", 50)] {
        png(&at.join(format!("{name}.png")), width, 1.max(width / 201));
    }
    let model = format!("{GOLDEN}/qwen2vl");
    let args = ["annotate", "--model", &model, "--images", ".", "--task", "text", "--max-new-tokens", "2"];
    let said = ends(at, 0, &[&args[..], &["--out", "out.jsonl"]].concat());
    assert!(said.contains("skipped \"b.png\": a picture of 5000x24, expected sides in a ratio"), "{said}");
    let rejected: Vec<Value> = records(&at.join("out.jsonl")).iter().map(|r| r["rejected"].clone()).collect();
    assert_eq!(rejected, ["unparsed", "unreadable", "unparsed"]);
    // One that is asked for alone is the user's mistake.
    let said = ends(at, 2, &["generate", "--model", &model, "--image", "b.png", "--prompt", "what?"]);
    assert!(said.contains("5000x24"), "{said}");
}
