//! The recipes of the paper's pairs, and runs on parts of benchmarks as they name them.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mpa::data::benchmarks::Benchmark;
use mpa::demo::inputs::{self, Plan};
use mpa::mpa::config::{Config, Int8};
use mpa::mpa::level::{Arm, Settings};
use mpa::mpa::prompts;
use mpa::mpa::select::Rule;
use mpa::mpa::source::{Part, Source};
use mpa::train::optim::Schedule;
use serde_json::{Value, json};
use tempfile::TempDir;
use toml::Table;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names as `student.teacher.benchmark`, and configs.
fn recipes() -> Vec<(String, Config)> {
    let files = fs::read_dir(root().join("recipes")).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().strip_suffix(".toml").unwrap().to_string();
        (name, Config::read(&path).unwrap())
    };
    let mut all: Vec<_> = files.map(named).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn part(source: &Source) -> &Part {
    match source {
        Source::Part(part) => part,
        Source::Path(path) => panic!("{path}"),
    }
}

#[test]
fn there_is_a_recipe_for_every_pair_that_this_binary_knows() {
    let names: Vec<String> = recipes().into_iter().map(|(name, _)| name).collect();
    let mut want = Vec::new();
    for student in ["qwen2-vl-2b", "smolvlm-500m"] {
        want.extend(["chartqa", "okvqa", "stvqa", "textvqa"].map(|on| format!("{student}.qwen2-vl-7b.{on}")));
    }
    assert_eq!(names, want);
    let docs = fs::read_to_string(root().join("docs/reproduce.md")).unwrap();
    for name in names {
        let text = fs::read_to_string(root().join(format!("recipes/{name}.toml"))).unwrap();
        assert!(text.contains(&format!("#   mpa run recipes/{name}.toml\n")), "{name}");
        let [student, _, on] = name.split('.').collect::<Vec<_>>().try_into().unwrap();
        assert!(docs.contains(&format!("`{student}`")) && docs.contains(&format!("`{on}`")), "{name}");
    }
}

/// What shared/DESIGN.md says of the paper and its code.
#[test]
fn the_recipes_have_the_settings_of_the_paper() {
    for (name, config) in recipes() {
        let [student, teacher, on]: [&str; 3] = name.split('.').collect::<Vec<_>>().try_into().unwrap();
        let models = &config.models;
        assert!(models.student.to_lowercase().ends_with(&format!("/{student}-instruct")), "{name}");
        assert!(models.teacher.to_lowercase().ends_with(&format!("/{teacher}-instruct")), "{name}");
        assert_eq!(models.teacher_int8.and_then(Int8::parts), None, "{name}");
        let pixels = (models.min_pixels, models.max_pixels);
        assert_eq!(pixels, (Some(128 * 28 * 28), Some(512 * 28 * 28)), "{name}");
        assert_eq!(config.out, Some(format!("../runs/{name}")));

        let task = if on == "chartqa" {
            prompts::CHART
        } else if on == "okvqa" {
            prompts::KNOWLEDGE
        } else {
            prompts::TEXT
        };
        let annotation = config.annotation();
        assert_eq!(annotation.prompt, task, "{name}");
        assert_eq!((annotation.samples, annotation.temperature, annotation.max_new_tokens), (1, 0.0, 128));
        let answering = config.prediction();
        assert_eq!(answering.prompt, "{question}Answer the following question in a single word or phrase.");
        assert_eq!(answering.max_new_tokens, 128, "{name}");
        let evaluation = config.evaluation().unwrap();
        assert_eq!((evaluation.prompt, evaluation.max_new_tokens), (answering.prompt, 128), "{name}");
        assert_eq!(config.select.rule, Rule::Contains, "{name}");
        // scripts/finetune_lora.sh of 2U1/Qwen2-VL-Finetune at 8922643, the commit that the released code has as its scripts/PL.
        let lora = Settings { rank: 64, alpha: 128.0, dropout: 0.05, lr: 1e-4, ..Settings::default() };
        let want = Settings {
            arms: vec![Arm::ParityOnly],
            schedule: Schedule::Cosine,
            warmup: 0.03,
            epochs: 1.0,
            ..lora
        };
        assert_eq!(config.level, want, "{name}");

        let (train, test) =
            (part(&config.annotate.images), part(&config.evaluate.as_ref().unwrap().questions));
        assert!(
            serde_json::to_value(train.benchmark).unwrap() == on && test.benchmark == train.benchmark,
            "{name}"
        );
        let (shares, one) = match train.benchmark {
            // 85 % of 85 %.
            Benchmark::Stvqa => (([0.0, 0.7225], [0.85, 1.0]), true),
            Benchmark::Chartqa => (([0.0, 1.0], [0.0, 1.0]), false),
            _ => (([0.0, 0.85], [0.0, 1.0]), false),
        };
        assert_eq!((train.share, test.share, test.one_per_picture), (shares.0, shares.1, one), "{name}");
        assert_eq!((train.seed, test.seed), (0, 0), "{name}");
        // Nothing of the test is annotated: another split's files, or a share beside it.
        assert!(train.annotations != test.annotations || train.share[1] <= test.share[0], "{name}");
        for path in [&train.annotations, &train.pictures, &test.annotations, &test.pictures] {
            assert!(path.starts_with(&format!("../data/{on}")), "{name}: {path}");
        }
    }
}

/// The demo's models with 20 pictures, each with two questions, in the layout of ST-VQA, and a config with shares of them.
fn stvqa() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let plan = Plan { pictures: 1, pairs: 2, held_out: 20, questions: 2, steps: 4 };
    inputs::prepare(&home.path().join("demo"), 3, plan).unwrap();
    let eval = home.path().join("demo/inputs/eval");
    let lines = fs::read_to_string(eval.join("questions.jsonl")).unwrap();
    let element = |(id, line): (usize, &str)| {
        let record: Value = serde_json::from_str(line).unwrap();
        let (question, answers) = (&record["question"], [&record["answer"]]);
        json!({"question_id": id, "file_path": record["image"], "question": question, "answers": answers})
    };
    let data: Vec<Value> = lines.lines().enumerate().map(element).collect();
    fs::write(eval.join("train.json"), json!({"data": data}).to_string()).unwrap();
    let mut config: Table =
        fs::read_to_string(home.path().join("demo/config.toml")).unwrap().parse().unwrap();
    let part = |more: &str| {
        let text = format!(
            "benchmark = \"stvqa\"\nannotations = \"inputs/eval/train.json\"\npictures = \"inputs/eval\"\n{more}"
        );
        toml::Value::Table(text.parse().unwrap())
    };
    config["annotate"]["images"] = part("share = [0, 0.7225]\n");
    config["evaluate"]["questions"] = part("share = [0.85, 1]\none_per_picture = true\n");
    fs::write(home.path().join("demo/run.toml"), config.to_string()).unwrap();
    home
}

fn mpa(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mpa")).current_dir(home).args(args).output().unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_on_shares_of_a_benchmark_keeps_them_apart_and_has_its_metric() {
    let home = stvqa();
    let output = mpa(home.path(), &["run", "demo/run.toml", "--out", "out", "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = home.path().join("out");
    let pictures = |file: &str| -> Vec<String> {
        let name = |record: &Value| {
            let path = out.join(file).parent().unwrap().join(record["image"].as_str().unwrap());
            assert!(path.exists(), "{}", path.display());
            path.file_name().unwrap().to_str().unwrap().to_string()
        };
        lines(&out.join(file)).iter().map(name).collect()
    };
    let (train, test) = (pictures("pictures.jsonl"), pictures("evaluate/questions.jsonl"));
    // Of 20: to 14.45, and from 17 on; one question each.
    assert_eq!((train.len(), test.len()), (14, 3));
    assert_eq!(train.iter().chain(&test).collect::<BTreeSet<_>>().len(), 17);

    let summary: Value = serde_json::from_slice(&fs::read(out.join("summary.json")).unwrap()).unwrap();
    let scores = &summary["scores"]["teacher"];
    assert_eq!((&scores["metric"], &scores["records"]), (&json!("anls"), &json!(3)), "{summary}");
    let scored = mpa(
        &out.join("evaluate"),
        &[
            "score",
            "--benchmark",
            "stvqa",
            "--annotations",
            "questions.jsonl",
            "--predictions",
            "teacher/predictions.jsonl",
            "--json",
        ],
    );
    let scored: Value = serde_json::from_slice(&scored.stdout).unwrap();
    assert_eq!(scored["score"], scores["accuracy"], "{scored}");

    // Again it is the same, and with another share another run.
    let before = fs::read(out.join("evaluate/questions.jsonl")).unwrap();
    assert!(mpa(home.path(), &["run", "demo/run.toml", "--out", "out", "--quiet"]).status.success());
    assert_eq!(fs::read(out.join("evaluate/questions.jsonl")).unwrap(), before);
    let text = fs::read_to_string(home.path().join("demo/run.toml")).unwrap();
    fs::write(home.path().join("demo/run.toml"), text.replace("0.7225", "0.6")).unwrap();
    let output = mpa(home.path(), &["run", "demo/run.toml", "--out", "out", "--quiet"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && told.contains("annotate.images.share"), "{told}");
}

#[test]
fn a_grid_takes_a_base_with_shares_of_a_benchmark() {
    let home = stvqa();
    let grid = "base = \"demo/run.toml\"\n[grid]\nrule = \"none\"\npictures = [5, 10]\n";
    fs::write(home.path().join("grid.toml"), grid).unwrap();
    let output = mpa(home.path(), &["ablate", "grid.toml", "--out", "out", "--quiet", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pseudo = |row: usize| json["rows"][row]["pseudo"].as_u64().unwrap();
    assert!(pseudo(0) <= 10 && pseudo(1) > 10 && pseudo(1) <= 20, "{json}");
    assert!(json["rows"][0]["after"].is_f64(), "{json}");
}

#[test]
fn mistakes_in_a_part_name_the_key() {
    let home = stvqa();
    let file = home.path().join("demo/run.toml");
    let text = fs::read_to_string(&file).unwrap();
    let cases = [
        (
            "share = [0, 0.7225]",
            "share = [0.9, 0.7225]",
            "`annotate.images.share`: expected two rising numbers from 0 to 1",
        ),
        ("share = [0, 0.7225]", "part = 1", "unknown field `part`"),
        (
            "share = [0, 0.7225]",
            "questions = \"q.json\"",
            "`annotate.images.questions`: expected nothing but for okvqa",
        ),
        ("benchmark = \"stvqa\"", "benchmark = \"vqa\"", "unknown variant `vqa`"),
        ("annotations = \"inputs/eval/train.json\"", "annotations = \"inputs/eval/none.json\"", "none.json"),
        ("share = [0, 0.7225]", "share = [0, 0.001]", "has no pictures in the share"),
    ];
    for (right, wrong, expected) in cases {
        assert!(text.contains(right), "{right} in {text}");
        fs::write(&file, text.replacen(right, wrong, 1)).unwrap();
        let output = mpa(home.path(), &["run", "demo/run.toml", "--out", "out", "--quiet"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains(expected), "{wrong}: {told}");
        let _ = fs::remove_dir_all(home.path().join("out"));
    }
}

/// Hours before the student would be loaded.
#[test]
fn a_family_that_is_not_known_is_told_before_anything_runs() {
    let home = stvqa();
    let student = home.path().join("demo/inputs/student/config.json");
    let text = fs::read_to_string(&student).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["model_type"] = json!("internvl_chat");
    fs::write(&student, config.to_string()).unwrap();
    let output = mpa(home.path(), &["run", "demo/run.toml", "--out", "out", "--quiet"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for part in
        ["student/config.json", "a family that this binary knows", "qwen2_vl", "got \"internvl_chat\""]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!home.path().join("out").exists());
}

/// As in the recipes with SmolVLM: the pixels are the teacher's.
#[test]
fn a_student_of_tiles_goes_with_a_teacher_of_whole_pictures() {
    let home = tempfile::tempdir().unwrap();
    let golden = root().join("tests/golden");
    let config = format!(
        "[models]\nteacher = {:?}\nstudent = {:?}\nmax_pixels = 100_352\n[annotate]\nimages = {:?}\ntask = \"text\"\nmax_new_tokens = 2\n",
        golden.join("qwen2vl"),
        golden.join("smolvlm"),
        golden.join("images")
    );
    fs::write(home.path().join("run.toml"), config).unwrap();
    let output = mpa(home.path(), &["run", "run.toml", "--out", "out", "--quiet"]);
    // Random weights write no questions; that is said at the end, when all models have answered.
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("the parity set is empty"), "{told}");
}
