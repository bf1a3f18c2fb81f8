//! One op, one stem: src/ops, tests/ops, benches/ops and kernels must agree, so that nothing is left untested or unmeasured.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Files of src/ops that are no ops but shared by them.
const HELPERS: [&str; 3] = ["mod", "pieces", "vector_math"];

/// Stems of the files in `folder` with `extension`, without `except`; none if there is no such folder.
fn stems(folder: &str, extension: &str, except: &[&str]) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let Ok(entries) = fs::read_dir(&folder) else {
        return BTreeSet::new();
    };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|stem| !except.contains(&stem.as_str()))
        .collect()
}

/// The modules that `file` declares with `mod NAME;` or `pub mod NAME;`.
fn modules(file: &str, except: &[&str]) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    text.lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .filter(|name| !except.contains(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_op_has_its_tests_and_benches() {
    let ops = stems("src/ops", "rs", &HELPERS);
    assert!(ops.contains("attention"), "src/ops was not read: {ops:?}");
    assert_eq!(stems("tests/ops", "rs", &["main"]), ops, "tests/ops against src/ops");
    assert_eq!(stems("benches/ops", "rs", &["main"]), ops, "benches/ops against src/ops");
}

#[test]
fn every_file_is_compiled() {
    let ops = stems("src/ops", "rs", &HELPERS);
    assert_eq!(modules("src/ops/mod.rs", &HELPERS), ops, "src/ops/mod.rs");
    assert_eq!(modules("tests/ops/main.rs", &["common"]), ops, "tests/ops/main.rs");
    assert_eq!(modules("benches/ops/main.rs", &[]), ops, "benches/ops/main.rs");
    let runner =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ops/main.rs")).unwrap();
    for op in ops {
        assert!(runner.contains(&format!("    {op}::benches,\n")), "benches/ops/main.rs does not run {op}");
    }
}

#[test]
fn every_kernel_is_an_op_with_tests() {
    let ops = stems("src/ops", "rs", &HELPERS);
    let kernels = stems("kernels", "cu", &[]);
    // A large op has several files: attention.cu, attention_backward.cu.
    let is_of = |kernel: &str, op: &str| kernel == op || kernel.starts_with(&format!("{op}_"));
    let strangers: Vec<_> = kernels.iter().filter(|k| !ops.iter().any(|op| is_of(k, op))).collect();
    assert!(strangers.is_empty(), "kernels without an op: {strangers:?}");
    assert_eq!(stems("tests/kernels", "rs", &["main", "device"]), kernels, "tests/kernels against kernels");
    assert_eq!(modules("tests/kernels/main.rs", &["common", "device"]), kernels, "tests/kernels/main.rs");
}
