//! Where commands write: folders with names that are not UTF-8, and folders that hold something of somebody else's.
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn mpa(folder: &Path, args: &[OsString]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mpa")).current_dir(folder).args(args).output().unwrap()
}

/// stdout and stderr of a command that ends with `code`.
#[track_caller]
fn ends(folder: &Path, code: i32, args: &[&str], last: &[OsString]) -> String {
    let args: Vec<OsString> = args.iter().map(OsString::from).chain(last.iter().cloned()).collect();
    let output = mpa(folder, &args);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

fn odd(name: &str) -> OsString {
    OsString::from_vec([name.as_bytes(), b"\xff"].concat())
}

/// JSON has no such names; what was done is no less done.
#[test]
fn a_name_that_is_not_utf8_is_shown_as_well_as_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let shown = |said: &str, name: &str| assert!(said.contains(&format!("{name}\u{fffd}")), "{said}");
    let write = ["bench", "model", "--shape", "tiny", "--words", "4", "--new", "3", "--write", "peer"];
    ends(at, 0, &write, &[]);
    let merge = ["merge", "--model", "peer", "--adapter", "peer/adapter", "--json", "--out"];
    shown(&ends(at, 0, &merge, &[odd("merged")]), "merged");
    let bench = ["bench", "model", "--words", "4", "--new", "3", "--runs", "1", "--tiles", "1", "--model"];
    assert!(ends(at, 0, &bench, &["peer".into(), "--json".into()]).contains("\"shape\":\"peer\""));
    fs::write(at.join("q.jsonl"), "{\"question\": \"?\", \"answer\": \"a\"}\n").unwrap();
    let model = format!("{GOLDEN}/smolvlm");
    let evaluate =
        ["evaluate", "--model", &model, "--questions", "q.jsonl", "--max-new-tokens", "2", "--out"];
    ends(at, 0, &evaluate, &[odd("scores")]);
    shown(&ends(at, 0, &["report", "--json"], &[odd("scores")]), "scores");
    // An argument that is kept beside an output has to be text.
    fs::rename(at.join("q.jsonl"), at.join(odd("q"))).unwrap();
    let predict = ["predict", "--model", &model, "--out", "p.jsonl", "--questions"];
    assert!(ends(at, 2, &predict, &[odd("q")]).contains("p.jsonl.settings.json"));
}

#[test]
fn a_folder_with_somebody_elses_files_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let own = at.join("mine/inputs/images/00000.png");
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    for file in [&own, &at.join("mine/config.json")] {
        fs::write(file, "my own").unwrap();
    }
    for args in [&["bench", "model", "--shape", "tiny", "--write", "mine"][..], &["demo", "--out", "mine"]] {
        let said = ends(at, 2, args, &[]);
        assert!(said.contains("mine: is not empty"), "{said}");
    }
    for file in [&own, &at.join("mine/config.json")] {
        assert_eq!(fs::read_to_string(file).unwrap(), "my own");
    }
    assert_eq!(fs::read_dir(at.join("mine")).unwrap().count(), 2);
}

/// What cannot be done together, and numbers out of range, before anything is read.
#[test]
fn options_that_would_do_nothing_are_refused() {
    let at = Path::new(".");
    let bench = ["bench", "model", "--shape", "tiny"];
    for (more, want) in [
        (&["--train", "--int8"][..], "cannot be used with"),
        (&["--model", "m", "--write", "w"], "cannot be used with"),
        (&["--runs", "0"], "expected at least 1"),
    ] {
        let said = ends(at, 2, &[&bench[..], more].concat(), &[]);
        assert!(said.contains(want), "{said}");
    }
    let generate = ["generate", "--model", "m", "--prompt", "?"];
    let said = ends(at, 2, &[&generate[..], &["--temperature", "-1"]].concat(), &[]);
    assert!(said.contains("--temperature of at least 0"), "{said}");
    let said = ends(at, 2, &[&generate[..], &["--seed", "-1"]].concat(), &[]);
    assert!(said.contains("invalid value '-1' for '--seed"), "{said}");
    for name in ["alpha", "rehearsal", "max-grad-norm"] {
        let option = format!("--{name}");
        let said = ends(at, 2, &["level", "--model", "m", "--data", "d", "--out", "o", &option, "-1"], &[]);
        assert!(said.contains(&format!("`{}`", name.replace('-', "_"))), "{said}");
    }
}

/// Tokens of one tokenizer mean nothing to a model of another.
#[test]
fn a_reference_has_the_same_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("text"), "What does the sign say?").unwrap();
    let (model, other) = (format!("{GOLDEN}/smolvlm"), format!("{GOLDEN}/qwen2vl"));
    let read = ["bench", "perplexity", "--text", "text", "--window", "8", "--model", &model, "--reference"];
    assert!(ends(at, 0, &read, &[OsString::from(&model)]).contains("100.00 %"));
    let said = ends(at, 2, &read, &[OsString::from(&other)]);
    assert!(said.contains(&model) && said.contains(&format!("{other}: has another tokenizer")), "{said}");
}
