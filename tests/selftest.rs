//! `mpa selftest` and `mpa bench ops` as people call them, and scripts/gpu-check.sh, which a machine with a GPU runs.

use std::collections::BTreeSet;
use std::fs;
#[cfg(feature = "host-kernels")]
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

fn mpa(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mpa")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)))
}

#[test]
fn without_a_gpu_the_selftest_says_why_there_is_nothing_to_test() {
    if mpa::tensor::NO_KERNELS.is_some() || mpa::tensor::gpu_count().is_err() {
        let output = mpa(&["selftest"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("selftest: there is no GPU to test: th"), "{}", stderr(&output));
    }
    let output = mpa(&["selftest", "--backend", "cpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("compares a GPU with the CPU"), "{}", stderr(&output));
}

#[test]
fn shapes_have_names_of_their_own_and_what_they_take() {
    let listed = json(&mpa(&["bench", "ops", "--shapes", "--json"]));
    let shapes = listed["shapes"].as_array().unwrap();
    let name = |s: &Value| format!("{} {}", s["op"], s["name"]);
    let names: BTreeSet<String> = shapes.iter().map(name).collect();
    assert_eq!(names.len(), shapes.len(), "names are keys of the joined tables");
    for shape in shapes {
        assert!(shape["bytes"].as_u64().unwrap() > 0, "{shape}");
    }
    let find = |op: &str, name: &str| shapes.iter().find(|s| s["op"] == op && s["name"] == name).unwrap();
    // Queries and output of 15 heads, keys and values of 5; half of the scores and the diagonal.
    let prompt = find("attention", "SmolVLM-500M, prompt of 1024");
    assert_eq!(prompt["bytes"], 1024 * 2 * (15 + 5) * 64 * 2);
    assert_eq!(prompt["flops"], 4u64 * 15 * 64 * (1024 * 1025 / 2));
    let ceiling = find("linear", "8192 x 8192 x 8192");
    assert_eq!(
        (&ceiling["flops"], &ceiling["bytes"]),
        (&(2 * 8192u64.pow(3)).into(), &(6 * 8192u64.pow(2)).into())
    );
}

#[test]
fn whole_models_are_timed_and_written_for_peers() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("peer");
    let out = out.to_str().unwrap();
    let bench = |more: &[&str]| {
        let common = [
            "bench",
            "model",
            "--shape",
            "tiny",
            "--backend",
            "cpu",
            "--words",
            "4",
            "--new",
            "3",
            "--runs",
            "1",
            "--json",
        ];
        let output = mpa(&[&common[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        json(&output)
    };
    let answering = bench(&["--batch", "2", "--tiles", "17"]);
    assert!(answering["answering"]["decode_tokens_s"].as_f64().unwrap() > 0.0, "{answering}");
    let plain = bench(&["--train"]);
    let losses = |report: &Value| report["training"]["losses"].as_array().unwrap().clone();
    assert_eq!(losses(&plain).len(), 2);
    assert_eq!(losses(&plain), losses(&bench(&["--train", "--recompute"])));
    // The same checkpoint and adapter as a peer finds them.
    bench(&["--train", "--write", out]);
    let data = fs::read(format!("{out}/bench.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&data).unwrap()["name"], "tiny, batch 1, 1 tiles, 4 words");
    let adapter = format!("{out}/adapter");
    let output = mpa(&[
        "generate",
        "--model",
        out,
        "--adapter",
        &adapter,
        "--prompt",
        "w1 w2",
        "--max-new-tokens",
        "2",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = mpa(&["bench", "model", "--shape", "giant"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("smolvlm-500m"), "{}", stderr(&output));
}

/// Each picture is seen once, and its tokens are there when the question about it comes.
#[test]
fn a_bench_of_the_engine_sees_each_picture_once() {
    for (shape, more) in [("tiny", "--kv-cache=int8"), ("qwen2-vl-tiny", "--int8")] {
        let output = mpa(&[
            "bench",
            "engine",
            "--shape",
            shape,
            "--pictures",
            "7",
            "--batch",
            "3",
            "--words",
            "9",
            "--new",
            "6",
            "--backend",
            "cpu",
            "--json",
            more,
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let done = &json(&output)["labelling"];
        let number = |value: &Value| value.as_f64().unwrap();
        let spent = &done["spent"];
        assert_eq!(number(&spent["pictures"]), 7.0);
        // Of two prompts about each picture the second has at least the picture from the first, of both a quarter or more.
        let (made, shared) = (number(&spent["prompt_tokens"]), number(&spent["shared_tokens"]));
        assert!(3.0 * shared >= made && shared < made, "{spent}");
        assert_eq!(number(&done["tokens"]), 7.0 * (6.0 + 5.0));
        assert!(number(&done["pictures_s"]) > 0.0 && number(&done["peak_bytes"]) > 0.0, "{done}");
    }
    for bench in ["engine", "model"] {
        let output = mpa(&["bench", bench, "--shape", "tiny", "--batch", "9999999999999999999"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    }
    let output = mpa(&["bench", "engine", "--shape", "tiny", "--pictures", "0"]);
    assert_eq!(output.status.code(), Some(2));
}

/// Runs `bench ops --quick` and looks at its CSV.
fn quick_bench(backend: &str) {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("ops.csv");
    let output =
        mpa(&["bench", "ops", "--quick", "--backend", backend, "--csv", csv.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let result = json(&output);
    let rows = result["rows"].as_array().unwrap();
    let listed = json(&mpa(&["bench", "ops", "--shapes", "--json"]));
    assert_eq!(rows.len(), listed["shapes"].as_array().unwrap().len());
    assert!(rows.iter().all(|row| row["median_us"].as_f64().unwrap() > 0.0));
    let text = fs::read_to_string(csv).unwrap();
    let mut lines = text.lines();
    let columns =
        "op,shape,dtype,median_us,bytes,flops,GB/s,TFLOP/s,percent_of_ceiling,gpu,driver,commit,note";
    assert_eq!(lines.next(), Some(columns));
    assert_eq!(lines.count(), rows.len());
}

#[test]
fn every_shape_runs_on_the_cpu() {
    quick_bench("cpu");
}

#[cfg(feature = "host-kernels")]
#[test]
fn every_shape_runs_on_kernels() {
    quick_bench("host");
    let output = mpa(&["bench", "ops", "--backend", "host"]);
    assert_eq!(output.status.code(), Some(2), "whole shapes would take hours");
}

#[cfg(feature = "host-kernels")]
#[test]
fn kernels_on_the_cpu_pass_the_selftest() {
    let output = mpa(&["selftest", "--quick", "--backend", "host", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let result = json(&output);
    let ops: BTreeSet<&str> = result["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["op"].as_str()?.split(' ').next())
        .collect();
    let kernels =
        fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap().map(|e| e.unwrap().path());
    for kernel in kernels.filter(|path| path.extension().is_some_and(|e| e == "cu")) {
        let stem = kernel.file_stem().unwrap().to_str().unwrap();
        // Hopper's kernels serve the op's own cases, wherever its instructions are.
        let case = stem.strip_suffix("_hopper").unwrap_or(stem);
        assert!(ops.contains(case), "src/selftest has no case for {stem}");
    }
}

/// A library of one host kernel, in which `from` was replaced.
#[cfg(feature = "host-kernels")]
fn broken(folder: &Path, stem: &str, from: &str, to: &str) -> std::path::PathBuf {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for path in fs::read_dir(&kernels).unwrap().map(|e| e.unwrap().path()) {
        if path.extension().is_some_and(|e| e == "cuh") {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    let text = fs::read_to_string(kernels.join(stem).with_extension("cu")).unwrap();
    assert!(text.contains(from), "{stem}.cu has no {from}");
    fs::write(folder.join(stem).with_extension("cu"), text.replace(from, to)).unwrap();
    let (script, library) = (kernels.join("host/build.sh"), folder.join("broken.so"));
    Command::new("bash")
        .arg(script)
        .arg("--kernels")
        .args([folder, "plain".as_ref(), &library])
        .assert()
        .success();
    library
}

#[cfg(feature = "host-kernels")]
#[test]
fn a_wrong_kernel_fails_the_selftest() {
    let folder = tempfile::tempdir().unwrap();
    let library = broken(folder.path(), "add", "+ to_f32(b[i])", "+ to_f32(b[i]) * 1.01f");
    let output = Command::new(env!("CARGO_BIN_EXE_mpa"))
        .args(["selftest", "--quick", "--backend", "host", "--filter", "add", "--json"])
        .env("MPA_HOST_KERNELS", library)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let result = json(&output);
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len() as u64, result["failed"].as_u64().unwrap(), "{result}");
    assert!(rows.iter().all(|row| row["why"].as_str().unwrap().contains("wanted")), "{result}");
}

#[cfg(feature = "host-kernels")]
#[test]
fn gpu_check_runs_and_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_mpa")).parent().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check.sh");
    let output = Command::new("bash")
        .arg(script)
        .args([binaries, folder.path()])
        .env("MPA_CHECK_BACKEND", "host")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    // 3: something is missing here, as it mostly is where tests run.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{stdout}");
    assert!(!stdout.contains("FAILED"), "{stdout}");
    assert_eq!(output.status.code() == Some(3), stdout.contains("\nskipped  "), "{stdout}");
    for name in ["facts.txt", "mpa.txt", "ops.csv"] {
        assert!(fs::metadata(folder.path().join(name)).unwrap().len() > 0, "{name}");
    }
    let nothing = Command::new("bash").arg(script).args([folder.path(), folder.path()]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(2));
}

/// A kernel that takes the whole self-test or benchmark down with it: each op has a process of its own then, those that had only begun too.
#[test]
fn gpu_check_goes_on_op_by_op() {
    const MPA: &str = r#"#!/bin/bash
header='op,shape,dtype,median_us,bytes,flops,GB/s,TFLOP/s,percent_of_ceiling,gpu,driver,commit,note'
row() { echo "$1,\"$2, 3\",bf16,1,1,1,1,1,,g,d,\"c\","; }
filter= csv=
for ((i = 1; i <= $#; i++)); do
    j=$((i + 1))
    case ${!i} in --filter) filter=${!j} ;; --csv) csv=${!j} ;; esac
done
case "$1 $2 $filter" in
"selftest --backend ") echo "attention causal" >&2; exit 1 ;;
selftest*) echo "$filter  bf16  3 x 5  1e-3  3 %  1  why  ok" ;;
"bench ops ") [ -z "$csv" ] || { echo "$header"; row copy a; row attention a; } >"$csv"; exit 1 ;;
bench*) { echo "$header"; row copy b; row "$filter" a; row "$filter" b; } >"$csv" ;;
esac
"#;
    let folder = tempfile::tempdir().unwrap();
    let (mpa, out) = (folder.path().join("mpa"), folder.path().join("out"));
    fs::write(&mpa, MPA).unwrap();
    fs::set_permissions(&mpa, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new("bash")
        .args(["scripts/gpu-check.sh".as_ref(), folder.path(), &out])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("MPA_CHECK_BACKEND", "host")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    for part in ["selftest attention", "selftest norm", "bench attention", "bench linear"] {
        assert!(stdout.contains(&format!("\n== {part} ==\n")), "{part}: {stdout}");
    }
    assert_eq!(stdout.matches("== selftest attention ==").count(), 1, "{stdout}");
    let rows = fs::read_to_string(out.join("ops.csv")).unwrap();
    let count = |start: &str| rows.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        ["op,", "copy,\"a", "copy,\"b", "attention,", "linear,"].map(count),
        [1, 1, 1, 2, 2],
        "{rows}"
    );
}
