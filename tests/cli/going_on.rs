//! Outputs that are gone on with, and those that are not: after SIGKILL, with other settings, weights or questions.
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use assert_cmd::Command;

use super::{fails, json, model, models, mpa, questions, text, write};

#[test]
fn other_settings_do_not_go_on_with_an_output() {
    let folder = questions(2);
    let (at, model) = (folder.path(), model());
    let predict =
        ["predict", "--model", &model, "--questions", "q.jsonl", "--out", "o.jsonl", "--max-new-tokens", "2"];
    assert_eq!(json(at, &predict)["records"], 2);
    assert_eq!(json(at, &predict)["records"], 2);
    json(at, &[&predict[..], &["--batch", "1"]].concat());
    let said = fails(at, 2, &[&predict[..], &["--prompt", "{question}!"]].concat());
    assert!(said.contains("o.jsonl: was begun with prompt = "), "{said}");
    let said = fails(at, 2, &[&predict[..], &["--dtype", "bf16"]].concat());
    assert!(said.contains("o.jsonl: was begun with dtype = null, now it is \"bf16\""), "{said}");
    write(at, "mine.jsonl", "{\"id\":\"precious\"}\n");
    let said = fails(at, 2, &["predict", "--model", &model, "--questions", "q.jsonl", "--out", "mine.jsonl"]);
    assert!(said.contains("mine.jsonl: exists and was not made by this command"), "{said}");
    assert_eq!(fs::read_to_string(at.join("mine.jsonl")).unwrap(), "{\"id\":\"precious\"}\n");
}

/// A folder or file of the same name may hold something else by now.
#[test]
fn other_models_and_questions_do_not_go_on_with_an_output() {
    let folder = questions(2);
    let at = folder.path();
    models::copy(Path::new(&model()), &at.join("m"));
    let predict =
        ["predict", "--model", "m", "--questions", "q.jsonl", "--out", "o.jsonl", "--max-new-tokens", "2"];
    json(at, &predict);
    let asked = fs::read_to_string(at.join("q.jsonl")).unwrap();
    for (from, to, key) in [
        ("What is 1?", "Who is 1?", "question"),
        ("\"a\"", "\"b\"", "answer"),
        ("cat.png", "chart.png", "image"),
    ] {
        write(at, "q.jsonl", &asked.replace(from, to));
        let said = fails(at, 2, &predict);
        assert!(
            said.contains("o.jsonl:") && said.contains(&format!("with another `{key}` than the input")),
            "{said}"
        );
    }
    write(at, "q.jsonl", &asked);
    json(at, &predict);
    let weights = at.join("m/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let said = fails(at, 2, &predict);
    assert!(said.contains("o.jsonl: was begun with model_contents = "), "{said}");
    models::copy(Path::new(&model()), &at.join("m"));
    json(at, &predict);
    let template = at.join("m/chat_template.json");
    fs::write(&template, fs::read_to_string(&template).unwrap() + " ").unwrap();
    assert!(fails(at, 2, &predict).contains("o.jsonl: was begun with model_contents = "));
}

/// What is read twice is empty the second time.
#[cfg(unix)]
#[test]
fn pipes_are_refused_where_files_are_read_twice() {
    let folder = questions(1);
    let (at, model) = (folder.path(), model());
    for args in [
        &["predict", "--model", &model, "--questions", "/dev/stdin", "--out", "o.jsonl"][..],
        &["annotate", "--model", &model, "--images", "/dev/stdin", "--task", "text", "--out", "o.jsonl"],
        &["select", "--teacher", "/dev/stdin", "--student", "q.jsonl", "--out", "p.jsonl"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_mpa"))
            .current_dir(at)
            .args(args)
            .write_stdin("{}\n")
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains("/dev/stdin: is no regular file"), "{said}");
    }
}

#[test]
fn a_killed_process_is_started_again_and_ends_with_the_same_bytes() {
    let folder = questions(40);
    let (at, model) = (folder.path(), model());
    let predict = |out| {
        ["predict", "--model", &model, "--questions", "q.jsonl", "--batch", "1", "--out", out]
            .map(str::to_string)
    };
    let run = |args: &[String]| mpa(at, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run(&predict("whole.jsonl")).status.code(), Some(0));
    let whole = fs::read(at.join("whole.jsonl")).unwrap();
    let mut killed = 0;
    for lines in [1, 7, 20, 39] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_mpa"));
        let child = child.current_dir(at).args(predict("part.jsonl")).stderr(Stdio::null());
        let mut child = child.stdout(Stdio::null()).spawn().unwrap();
        let there =
            || fs::read(at.join("part.jsonl")).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
        while there() < lines && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        assert!(whole.starts_with(&fs::read(at.join("part.jsonl")).unwrap()));
    }
    assert!(killed > 0, "every process was done before it could be killed");
    assert_eq!(run(&predict("part.jsonl")).status.code(), Some(0));
    assert_eq!(fs::read(at.join("part.jsonl")).unwrap(), whole);
}
