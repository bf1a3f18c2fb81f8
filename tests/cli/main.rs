//! The commands as people call them, with the tiny golden checkpoint: exit codes, streams, files, mistakes.
mod going_on;
#[path = "../common/models.rs"]
mod models;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use assert_cmd::Command;
use serde_json::Value;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn mpa(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpa"));
    command.current_dir(folder).args(args).output().unwrap()
}

/// Runs a command that succeeds with --json; everything it prints is one object.
#[track_caller]
fn json(folder: &Path, args: &[&str]) -> Value {
    let output = mpa(folder, &[args, &["--json"]].concat());
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// Runs a command that fails; returns what it says.
#[track_caller]
fn fails(folder: &Path, code: i32, args: &[&str]) -> String {
    let output = mpa(folder, args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert!(stderr.starts_with("mpa: ") || stderr.contains("\nmpa: "), "{stderr}");
    stderr
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn model() -> String {
    format!("{GOLDEN}/smolvlm")
}

/// A folder with questions on the golden pictures, `count` of them.
fn questions(count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pictures = ["cat", "chart", "text", "gray", "alpha"];
    let line = |i: usize| {
        let image = format!("{GOLDEN}/images/{}.png", pictures[i % pictures.len()]);
        let record = serde_json::json!({"id": format!("q{i}"), "image": image, "question": format!("What is {i}?"), "answer": "a"});
        format!("{record}\n")
    };
    write(folder.path(), "q.jsonl", &(0..count).map(line).collect::<String>());
    folder
}

#[test]
fn help_and_version_go_to_stdout_and_every_command_has_help() {
    let here = Path::new(".");
    let help = mpa(here, &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let help = text(&help.stdout);
    let loops = ["demo", "run", "annotate", "predict", "select", "level", "evaluate", "ablate", "score"];
    for command in loops.into_iter().chain(["report", "generate", "merge", "quantize", "doctor"]) {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        let output = mpa(here, &[command, "--help"]);
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{command}");
        let own = text(&output.stdout);
        assert!(own.contains("Example"), "{command} has no example");
    }
    assert_eq!(text(&mpa(here, &["--version"]).stdout), format!("mpa {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn mistakes_in_arguments_end_with_2() {
    let folder = questions(1);
    let at = folder.path();
    let model = model();
    let annotate = ["annotate", "--model", &model, "--images", ".", "--task", "text", "--out", "o"];
    for (args, want) in [
        (&[][..], "a command is needed"),
        (&["bogus"], "unrecognized subcommand 'bogus'"),
        (&["predict", "--model", "m"], "--questions"),
        (
            &["annotate", "--model", "m", "--images", ".", "--task", "text", "--out", "o", "--batch", "0"],
            "at least 1",
        ),
        (
            &["annotate", "--model", &model, "--images", ".", "--task", "rhymes", "--out", "o"],
            "rhymes: no such prompt file",
        ),
        (
            &["annotate", "--model", &model, "--images", ".", "--task", "text", "--out", "o"],
            "has no pictures",
        ),
        (
            &[
                "annotate",
                "--model",
                &model,
                "--images",
                ".",
                "--task",
                "text",
                "--samples",
                "3",
                "--out",
                "o",
            ],
            "`samples`",
        ),
        (
            &["predict", "--model", &model, "--questions", "none.jsonl", "--out", "o"],
            "none.jsonl: No such file",
        ),
        (
            &["predict", "--model", &model, "--questions", "q.jsonl", "--out", "q.jsonl"],
            "--out is the input file",
        ),
        (
            &["predict", "--model", &model, "--questions", "q.jsonl", "--prompt", "x", "--out", "o"],
            "{question}",
        ),
        (
            &["predict", "--model", &model, "--adapter", "none", "--questions", "q.jsonl", "--out", "o"],
            "no such folder",
        ),
        (&["predict", "--model", "./none", "--questions", "q.jsonl", "--out", "o"], "none"),
        (&["generate", "--model", &model, "--prompt", "x", "--top-p", "0"], "--top-p"),
        (&["generate", "--model", &model, "--prompt", "x", "--image", "q.jsonl"], "q.jsonl: expected PNG"),
        (
            &["level", "--model", &model, "--data", "q.jsonl", "--out", "o", "--rank", "0"],
            "`rank`: expected 1 to 4096, got 0",
        ),
        (
            &["level", "--model", &model, "--data", "q.jsonl", "--out", "o", "--rehearsal", "0.5"],
            "q.rehearsal.jsonl: No such file",
        ),
        (
            &[
                "level",
                "--model",
                &model,
                "--data",
                "q.jsonl",
                "--out",
                "o",
                "--rehearsal-data",
                "none.jsonl",
            ],
            "--rehearsal-data: nothing is taken from it without --rehearsal",
        ),
        (&["select", "--teacher", "q.jsonl", "--student", "q.jsonl", "--out", "q.jsonl"], "named twice"),
        (
            &["select", "--teacher", "q.jsonl", "--student", "q.jsonl", "--out", "o"],
            "q.jsonl:1: record \"q0\": missing key `prediction`",
        ),
        (&["merge", "--model", &model, "--adapter", "none", "--out", "."], "is not empty"),
        (&["quantize", "--model", &model, "--out", "q.jsonl"], "q.jsonl: Not a directory"),
        (&["quantize", "--model", &model, "--out", "q.jsonl/int8"], "q.jsonl/int8: Not a directory"),
        (&[&annotate[..], &["--samples", "18446744073709551615"]].concat(), "`samples`: expected 1 to 1000"),
        (
            &[&annotate[..], &["--temperature", "1e300"]].concat(),
            "`temperature`: expected 0 to 3.4e38, got 1e300",
        ),
        (&[&annotate[..], &["--top-p", "1e-50"]].concat(), "`top_p`: expected above 0 (1e-45)"),
        (&[&annotate[..], &["--batch", "65537"]].concat(), "expected 1 to 65536, got 65537"),
    ] {
        let said = fails(at, 2, args);
        assert!(said.contains(want), "{args:?}: {said}");
        assert!(!at.join("o").is_dir() || fs::read_dir(at.join("o")).unwrap().count() <= 1, "{args:?}");
    }
}

#[test]
fn mistakes_in_a_config_are_named_with_file_line_and_key() {
    let folder = questions(1);
    fs::create_dir(folder.path().join("few")).unwrap();
    let good = format!(
        "[models]\nteacher = {0:?}\nstudent = {0:?}\n[annotate]\nimages = \"{GOLDEN}/images\"\ntask = \"text\"\n[level]\nlr = 0.1\n",
        model()
    );
    for (from, to, want) in [
        ("lr = 0.1", "rl = 0.1", "c.toml:8: `rl = 0.1`: unknown field `rl`"),
        (
            "lr = 0.1",
            "lr = -1.0",
            "c.toml:8: `level.lr`: expected above 0 (1e-45) and at most 3.4e38, got -1",
        ),
        ("lr = 0.1", "lr = \"fast\"", "c.toml:8: `lr = \"fast\"`: invalid type"),
        ("lr = 0.1", "arms = [\"legs\"]", "c.toml:8: `arms = [\"legs\"]`: unknown variant `legs`"),
        ("lr = 0.1", "lr = ", "c.toml:8:"),
        ("task = \"text\"", "", "c.toml:4: `annotate.task`: expected either `task` or `prompt`, got neither"),
        (
            "task = \"text\"",
            "task = \"none.txt\"",
            "c.toml:6: `annotate.task`: ./none.txt: no such prompt file",
        ),
        (
            "task = \"text\"",
            "task = \"text\"\nsamples = 0",
            "c.toml:7: `annotate.samples`: expected 1 to 1000, got 0",
        ),
        ("teacher", "master", "c.toml:2: `master = "),
        ("[models]", "[evaluate]\nquestions = \"none.jsonl\"\n[models]", "none.jsonl: No such file"),
        ("[level]", "[levels]", "c.toml:7: `[levels]`: unknown field `levels`"),
        (
            "lr = 0.1",
            "targets = [\"nothing\"]",
            "c.toml:8: `level.targets`: LoRA target \"nothing\" matches no linear layer",
        ),
        ("lr = 0.1", "targets = [\"(\"]", "c.toml:8: `level.targets`: LoRA targets: \"(\" is no regex"),
        (
            "lr = 0.1",
            "alpha = 1e300",
            "c.toml:8: `level.alpha`: expected above 0 (1e-45) and at most 3.4e38, got 1e300",
        ),
        (
            "lr = 0.1",
            "lr = 1e39",
            "c.toml:8: `level.lr`: expected above 0 (1e-45) and at most 3.4e38, got 1e39",
        ),
        (
            "lr = 0.1",
            "max_grad_norm = 1e-46",
            "c.toml:8: `level.max_grad_norm`: expected 0, or 1e-45 and more, got 1e-46",
        ),
        (
            "lr = 0.1",
            "full = [\"text\", \"vision\", \"text\"]",
            "c.toml:8: `level.full`: expected each tower once, got text",
        ),
        ("lr = 0.1", "eps = 1e-50", "c.toml:8: `level.eps`: expected above 0 (1e-45)"),
        ("lr = 0.1", "rank = 4097", "c.toml:8: `level.rank`: expected 1 to 4096, got 4097"),
        ("lr = 0.1", "batch = 65537", "c.toml:8: `level.batch`: expected 1 to 65536, got 65537"),
        (
            "lr = 0.1",
            "checkpoint_every = 9223372036854775808",
            "c.toml:8: `level.checkpoint_every`: expected 1 to 9223372036854775807, got 9223372036854775808",
        ),
        (
            "[models]",
            "seed = 9223372036854775808\n[models]",
            "c.toml:1: `seed`: expected 0 to 9223372036854775807",
        ),
        (
            "[models]\nteacher = ",
            "[models]\nteacher = \"\"\n#",
            "c.toml:2: `models.teacher`: expected a checkpoint folder",
        ),
        (
            "task = \"text\"",
            "prompt = \" \"",
            "c.toml:6: `annotate.prompt`: expected a text, got an empty one",
        ),
        (
            "task = \"text\"",
            "task = \"text\"\nsamples = 1001",
            "c.toml:7: `annotate.samples`: expected 1 to 1000, got 1001",
        ),
        (
            "task = \"text\"",
            "task = \"text\"\ntemperature = 1e300",
            "`annotate.temperature`: expected 0 to 3.4e38, got 1e300",
        ),
        (
            "task = \"text\"",
            "task = \"text\"\ntop_p = 1e-50",
            "`annotate.top_p`: expected above 0 (1e-45) and at most 1, got 1e-50",
        ),
        ("[models]", "[evaluate]\nquestions = \"few\"\n[models]", "few: is a folder, expected a JSONL file"),
    ] {
        assert!(good.contains(from));
        write(folder.path(), "c.toml", &good.replacen(from, to, 1));
        let said = fails(folder.path(), 2, &["run", "c.toml"]);
        assert!(said.contains(want), "{to}: {said}");
    }
    assert!(!folder.path().join("c").exists(), "nothing is made for a config with a mistake");
}

/// The student is loaded hours after the teacher.
#[test]
fn a_student_that_cannot_be_loaded_is_told_before_the_teacher_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let student = folder.path().join("student");
    let config = format!(
        "[models]\nteacher = {:?}\nstudent = \"student\"\n[annotate]\nimages = \"{GOLDEN}/images\"\ntask = \"text\"\n",
        model()
    );
    write(folder.path(), "c.toml", &config);
    for (missing, named) in [
        ("config.json", "config.json"),
        ("model.safetensors", "student: "),
        ("tokenizer.json", "tokenizer.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("chat_template.json", "chat_template"),
    ] {
        models::copy(Path::new(&model()), &student);
        fs::remove_file(student.join(missing)).unwrap();
        let said = fails(folder.path(), 2, &["run", "c.toml"]);
        assert!(said.contains("student") && said.contains(named), "{missing}: {said}");
        assert!(!folder.path().join("c").exists(), "{missing}: {said}");
        fs::remove_dir_all(&student).unwrap();
    }
}

#[test]
fn a_run_on_a_model_that_writes_nonsense_says_so_and_keeps_it() {
    let folder = questions(3);
    let config = format!(
        "[models]\nteacher = {0:?}\nstudent = {0:?}\n[annotate]\nimages = \"{GOLDEN}/images\"\ntask = \"chart\"\nmax_new_tokens = 6\n\
         [predict]\nmax_new_tokens = 3\n[evaluate]\nquestions = \"q.jsonl\"\n",
        model()
    );
    write(folder.path(), "c.toml", &config);
    let said = fails(folder.path(), 1, &["run", "c.toml", "--json"]);
    assert!(said.contains("annotate: rejected 5 unparsed of 5 records"), "{said}");
    assert!(said.contains("the parity set is empty"), "{said}");
    let lines = fs::read_to_string(folder.path().join("c/annotate.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 5);
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["rejected"], "unparsed");
        assert!(record["annotation"].as_str().is_some_and(|text| !text.is_empty()));
    }
    let scores = fs::read_to_string(folder.path().join("c/evaluate/teacher/scores.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&scores).unwrap()["records"], 3);
}

#[test]
fn level_evaluate_merge_and_generate_agree() {
    let folder = questions(4);
    let (at, model) = (folder.path(), model());
    let level = [
        "level",
        "--model",
        &model,
        "--data",
        "data.jsonl",
        "--out",
        "adapter",
        "--steps",
        "3",
        "--batch",
        "2",
        "--rank",
        "2",
    ];
    let broken = "{\"image\":\"q.jsonl\",\"question\":\"?\",\"answer\":\"a\"}\n";
    let data = fs::read_to_string(at.join("q.jsonl")).unwrap() + broken;
    write(at, "data.jsonl", &data);
    let level = [&level[..], &["--lr", "0.05", "--targets", "q_proj,down_proj"]].concat();
    let plan = json(at, &[&level[..], &["--dry-run"]].concat());
    assert_eq!((&plan["steps"], &plan["samples"]), (&3.into(), &4.into()));
    assert!(plan["takes_bytes"].as_u64() > plan["resident_bytes"].as_u64(), "{plan}");
    assert!(!at.join("adapter").exists(), "a dry run leaves nothing");
    let report = json(at, &level);
    assert_eq!((&report["steps"], &report["samples"]), (&3.into(), &4.into()));
    assert_eq!(report["unreadable"], 1);
    assert!(report["last_loss"].as_f64().unwrap() < report["first_loss"].as_f64().unwrap(), "{report}");
    assert_eq!(fs::read_to_string(at.join("adapter/loss.jsonl")).unwrap().lines().count(), 3);
    let before = fs::read(at.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(json(at, &level), report, "finished already");
    assert_eq!(fs::read(at.join("adapter/adapter_model.safetensors")).unwrap(), before);
    let said = fails(at, 2, &[&level[..], &["--alpha", "8"]].concat());
    assert!(said.contains("alpha = 32.0, now it is 8.0"), "{said}");

    let ask = ["--questions", "q.jsonl", "--max-new-tokens", "4"];
    json(at, &["merge", "--model", &model, "--adapter", "adapter", "--out", "merged"]);
    let with = json(
        at,
        &[&["evaluate", "--model", &model, "--adapter", "adapter", "--out", "e1"], &ask[..]].concat(),
    );
    let merged = json(at, &[&["evaluate", "--model", "merged", "--out", "e2"], &ask[..]].concat());
    assert_eq!(with, merged);
    let predictions = fs::read_to_string(at.join("e1/predictions.jsonl")).unwrap();
    assert_eq!(predictions, fs::read_to_string(at.join("e2/predictions.jsonl")).unwrap());
    json(at, &[&["evaluate", "--model", &model, "--out", "e3"], &ask[..]].concat());
    assert_ne!(
        predictions,
        fs::read_to_string(at.join("e3/predictions.jsonl")).unwrap(),
        "training changed nothing"
    );

    let image = format!("{GOLDEN}/images/cat.png");
    let prompt = "What is 0? Answer the following question in a single word or phrase.";
    let said = json(
        at,
        &["generate", "--model", "merged", "--image", &image, "--prompt", prompt, "--max-new-tokens", "4"],
    );
    let first: Value = serde_json::from_str(predictions.lines().next().unwrap()).unwrap();
    assert_eq!(said["text"].as_str().unwrap().trim(), first["prediction"]);
}

/// On a CPU an adapter stays f32 beside weights that are rounded.
#[test]
fn adapters_go_with_every_type_of_weights() {
    let folder = questions(2);
    let (at, model) = (folder.path(), model());
    let adapter = format!("{GOLDEN}/smolvlm/fixtures/lora/all/adapter_final");
    let predict = ["predict", "--model", &model, "--adapter", &adapter, "--questions", "q.jsonl"];
    for (i, how) in [&["--dtype", "bf16"][..], &["--dtype", "f32"], &["--int8", "--dtype", "bf16"]]
        .into_iter()
        .enumerate()
    {
        let out = format!("o{i}.jsonl");
        let predicted = json(at, &[&predict[..], &["--max-new-tokens", "2", "--out", &out], how].concat());
        assert_eq!(predicted["records"], 2, "{how:?}");
    }
}

#[test]
fn select_prints_its_counts_as_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(
        at,
        "t.jsonl",
        "{\"id\":\"a\",\"answer\":\"x\",\"prediction\":\"X.\"}\n{\"id\":\"b\",\"answer\":\"x\",\"prediction\":\"y\"}\n",
    );
    write(at, "s.jsonl", "{\"id\":\"a\",\"prediction\":\"z\"}\n{\"id\":\"b\",\"prediction\":\"x\"}\n");
    let select =
        ["select", "--teacher", "t.jsonl", "--student", "s.jsonl", "--rule", "contains", "--out", "p.jsonl"];
    let want = serde_json::json!({"records": 2, "teacher_consistent": 1, "student_wrong": 1, "kept": 1, "rehearsal": 0,
                                  "rejected": {"teacher_inconsistent": 1}});
    assert_eq!(json(at, &select), want);
    assert_eq!(fs::read_to_string(at.join("p.jsonl")).unwrap().lines().count(), 1);
    assert_eq!(fs::read_to_string(at.join("p.rehearsal.jsonl")).unwrap(), "", "both sets are written");
    let people = mpa(at, &select);
    assert!(text(&people.stdout).contains("kept 1"), "{people:?}");
}

#[test]
fn doctor_reports_this_machine() {
    let report = json(Path::new("."), &["doctor"]);
    assert!(report["threads"].as_u64().unwrap() >= 1);
    assert_eq!(report["devices"][0], "cpu");
    // Whatever this machine lacks is said, in both forms.
    let cuda = &report["cuda"];
    let there = [cuda["kernels"] != 0, cuda["gpus"] != serde_json::json!([]), cuda["cublaslt"] == true];
    let missing: Vec<&str> =
        cuda["missing"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    for (there, what) in there.into_iter().zip(["kernels: ", "a GPU: ", "cuBLASLt: "]) {
        assert_eq!(missing.iter().any(|m| m.starts_with(what)), !there, "{what}: {report}");
    }
    let people = text(&mpa(Path::new("."), &["doctor"]).stdout);
    for line in missing {
        assert!(people.contains(&format!("\nmissing   {line}\n")), "{people}");
    }
}

#[test]
fn doctor_lists_the_kernels_or_says_why_there_are_none() {
    let here = Path::new(".");
    if json(here, &["doctor"])["cuda"]["kernels"] == 0 {
        assert!(fails(here, 2, &["doctor", "--kernels"]).contains("without CUDA kernels"));
        return;
    }
    let report = json(here, &["doctor", "--kernels"]);
    let table = text(&mpa(here, &["doctor", "--kernels"]).stdout);
    let rows = report["kernels"].as_array().unwrap();
    assert_eq!(table.lines().count(), rows.len() + 2, "{table}");
    assert!(rows.iter().all(|row| row["registers"].as_u64().unwrap() > 0), "{table}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [&["--help"][..], &["doctor"], &["doctor", "--json"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mpa"));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn more_threads_than_anybody_has_are_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_mpa"))
        .arg("doctor")
        .env("RAYON_NUM_THREADS", "60000")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(said.starts_with("mpa: RAYON_NUM_THREADS: expected at most 4096, got 60000"), "{said}");
    assert_eq!(output.status.code(), Some(2));
}
