//! `--backend`, `--device` and `--dtype` as people give them.

use std::process::Output;

use assert_cmd::Command;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn generate(more: &[&str]) -> Output {
    let (model, image) = (format!("{GOLDEN}/smolvlm"), format!("{GOLDEN}/images/chart.png"));
    let args = [
        "generate",
        "--model",
        &model,
        "--image",
        &image,
        "--prompt",
        "What is it?",
        "--max-new-tokens",
        "6",
    ];
    Command::new(env!("CARGO_BIN_EXE_mpa")).args(args).args(more).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_device_is_said_and_why_it_is_this_one() {
    let asked = text(&generate(&["--backend", "cpu"]).stderr);
    assert!(asked.contains("device: cpu (as asked)"), "{asked}");
    if mpa::tensor::gpu_count().is_err() {
        let auto = generate(&[]);
        let why = text(&auto.stderr);
        assert_eq!(auto.status.code(), Some(0), "{why}");
        assert!(
            why.contains("device: cpu (this binary") || why.contains("device: cpu (there is no"),
            "{why}"
        );
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_users_mistake() {
    if mpa::tensor::gpu_count().is_err() {
        let output = generate(&["--backend", "cuda"]);
        let why = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{why}");
        assert!(why.contains("no CUDA: "), "{why}");
    }
}

#[cfg(feature = "host-kernels")]
#[test]
fn the_kernels_write_what_the_cpu_writes() {
    let cpu = generate(&["--backend", "cpu"]);
    let kernels = generate(&["--backend", "host", "--dtype", "f32"]);
    assert_eq!(kernels.status.code(), Some(0), "{}", text(&kernels.stderr));
    assert_eq!(text(&kernels.stdout), text(&cpu.stdout));
    let narrow = generate(&["--backend", "host"]);
    assert_eq!(narrow.status.code(), Some(0), "{}", text(&narrow.stderr));
}

#[cfg(feature = "host-kernels")]
#[test]
fn the_kernels_train_and_say_what_memory_it_took() {
    let folder = tempfile::tempdir().unwrap();
    let record =
        format!("{{\"question\":\"What?\",\"answer\":\"A cat.\",\"image\":\"{GOLDEN}/images/cat.png\"}}\n");
    std::fs::write(folder.path().join("data.jsonl"), record).unwrap();
    let model = format!("{GOLDEN}/smolvlm");
    let level =
        ["level", "--model", &model, "--data", "data.jsonl", "--out", "out", "--steps", "2", "--batch", "1"];
    let run = |more: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_mpa"))
            .args(level)
            .args(more)
            .current_dir(folder.path())
            .output();
        let output = run.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let plan = run(&["--dry-run", "--json"]);
    let done = run(&["--backend", "host", "--json"]);
    assert_eq!(plan["steps"], done["steps"]);
    let [foretold, took] =
        [&plan["takes_bytes"], &done["gpu_memory_bytes"]].map(|bytes| bytes.as_u64().unwrap());
    assert!(foretold.abs_diff(took) * 10 <= took, "{foretold} foretold, {took} taken");
}
