//! mpa score, mpa data check, and mpa evaluate on a benchmark: exit codes, messages, files.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::{Value, json};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn mpa(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mpa")).current_dir(folder).args(args).output().unwrap()
}

/// What a command that exits with `code` has on stdout (as JSON), and on stderr.
#[track_caller]
fn json_and_said(folder: &Path, code: i32, args: &[&str]) -> (Value, String) {
    let output = mpa(folder, &[args, &["--json"]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    (serde_json::from_slice(&output.stdout).unwrap_or(Value::Null), said)
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const ST: &str = r#"{"data":[
{"file_path":"a.png","question":"q","answers":["hello"],"question_id":5},
{"file_path":"b.png","question":"q","answers":["world","earth"],"question_id":"x"},
{"file_path":"a.png","question":"q","answers":["mars"],"question_id":6}]}"#;

const SCORE: [&str; 7] =
    ["score", "--benchmark", "stvqa", "--annotations", "st.json", "--predictions", "p.jsonl"];

#[test]
fn scores_and_says_what_is_missing_repeated_or_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "st.json", ST);
    let p = "{\"question_id\":\"x\",\"answer\":\"Earth\"}\n{\"question_id\":5,\"answer\":\"hella\"}\n\
             {\"question_id\":5,\"answer\":\"hella\"}\n{\"question_id\":77,\"answer\":\"?\"}\n";
    write(at, "p.jsonl", p);
    let (scores, _) = json_and_said(at, 0, &[&SCORE[..], &["--per-question", "out/pq.jsonl"]].concat());
    assert!((scores["score"].as_f64().unwrap() - 0.6).abs() < 1e-12, "{scores}");
    for (key, want) in [
        ("questions", json!(3)),
        ("missing", json!(1)),
        ("duplicates", json!(1)),
        ("unknown", json!(1)),
        ("missing_ids", json!(["6"])),
        ("unknown_ids", json!(["77"])),
        ("metric", json!("anls")),
    ] {
        assert_eq!(scores[key], want, "{key}");
    }
    let per = lines(&at.join("out/pq.jsonl"));
    let ids: Vec<&Value> = per.iter().map(|line| &line["question_id"]).collect();
    assert_eq!(ids, [&json!(5), &json!("x"), &json!(6)]);
    assert_eq!(per[2]["score"], json!(0.0));
    let table = String::from_utf8(mpa(at, &SCORE).stdout).unwrap();
    assert!(table.contains("60.00 %   95 % interval") && table.contains("question_id 6"), "{table}");
    let (paper, _) = json_and_said(at, 0, &[&SCORE[..], &["--metric", "paper"]].concat());
    assert_eq!(paper["score"], json!(0.0), "Of world and earth, one each, the first counts");
}

#[test]
fn mistakes_in_predictions_and_annotations_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "st.json", ST);
    let ours = "{\"question_id\":5,\"answer\":\"a\"}\n";
    for (predictions, part) in [
        (
            &format!("{ours}{}", ours.replace("\"a\"", "\"b\""))[..],
            "p.jsonl:2: question_id 5 is answered \"b\", but on line 1 \"a\"",
        ),
        (
            "{\"question_id\":5,\"answr\":\"a\"}",
            "p.jsonl:1: missing key `answer`; expected {\"question_id\": ..., \"answer\": \"...\"}, got answr",
        ),
        ("{\"questionId\":5,\"answer\":\"a\"}", "p.jsonl:1: missing key `question_id`"),
        (
            "{\"question_id\":5,\"answer\":[\"a\"]}",
            "p.jsonl:1: key `answer`: expected a string, got an array",
        ),
        ("{\"question_id\":[5],\"answer\":\"a\"}", "key `question_id`: expected a number or a string"),
        ("{\"question_id\":5,\n", "p.jsonl:1: not JSON"),
        (
            "{\"question_id\":8,\"answer\":\"a\"}",
            "none of its question ids is in st.json: it has \"8\", which has \"5\"",
        ),
    ] {
        write(at, "p.jsonl", predictions);
        let (_, said) = json_and_said(at, 2, &SCORE);
        assert!(said.contains(part), "{said}");
    }
    write(at, "p.jsonl", ours);
    for (annotations, part) in [
        (
            ST.replace("\"question_id\":6", "\"question_id\":5"),
            "st.json:4: question_id 5 was there before, on line 2",
        ),
        (ST.replace("[\"mars\"]", "[]"), "st.json:4: question_id 6 has no answers"),
        (ST.replace("}]}", "]}"), "st.json:4: not JSON, in or after element 2"),
        ("{\"data\":[]}".to_string(), "st.json: holds no questions"),
    ] {
        write(at, "st.json", &annotations);
        let (_, said) = json_and_said(at, 2, &SCORE);
        assert!(said.contains(part), "{said}");
    }
    let (_, said) =
        json_and_said(at, 2, &["score", "--benchmark", "vqa", "--annotations", "a", "--predictions", "p"]);
    assert!(said.contains("textvqa, stvqa, chartqa, okvqa"), "{said}");
    write(at, "none.json", "[]");
    let (_, said) = json_and_said(
        at,
        2,
        &["score", "--benchmark", "okvqa", "--annotations", "gone.json", "--predictions", "p.jsonl"],
    );
    assert!(said.contains("gone.json"), "{said}");
}

/// The paper's code takes the most frequent answer as it is written, of several the first.
#[test]
fn the_papers_metric_takes_the_most_frequent_answer() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (answers, prediction, want) in [
        (json!(["red", "blue", "blue"]), "red", 0.0),
        (json!(["red", "blue", "blue"]), "It is Blue.", 1.0),
        (json!(["red", "blue"]), "red", 1.0),
        (json!(["red", "blue"]), "blue", 0.0),
        (json!(["Red", "blue", "red", "blue"]), "red", 0.0),
    ] {
        let list = json!([{"question_id": 1, "file_path": "a.png", "question": "q", "answers": answers}]);
        write(at, "st.json", &list.to_string());
        write(at, "p.jsonl", &json!({"question_id": 1, "answer": prediction}).to_string());
        let (paper, _) = json_and_said(at, 0, &[&SCORE[..], &["--metric", "paper"]].concat());
        assert_eq!(paper["score"], json!(want), "{answers} {prediction}");
    }
}

/// What `mpa predict` wrote for records of this program has an id alone, and may have further keys. Without one no line is matched by its number.
#[test]
fn predictions_are_matched_by_ids_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "st.json", &ST.replace("\"x\"", "0"));
    let ours = r#"{"id":"5","answer":"x","prediction":"hello","answer_logprob":-0.1}"#;
    write(at, "p.jsonl", ours);
    let (scores, _) = json_and_said(at, 0, &SCORE);
    assert_eq!((&scores["missing"], &scores["unknown"]), (&json!(2), &json!(0)));
    assert!((scores["score"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12, "{scores}");
    for (predictions, part) in [
        (r#"{"prediction":"hello"}"#, "p.jsonl:1: missing key `question_id`"),
        (r#"{"id":5,"answer":"hello"}"#, "got id, answer"),
        ("\n", "p.jsonl: holds no predictions"),
        ("[{\"question_id\":5,\n", "p.jsonl:1: expected a JSON object a line, got a list over several lines"),
        ("{\"question_id\":5\n", "in column 16"),
    ] {
        write(at, "p.jsonl", predictions);
        let (_, said) = json_and_said(at, 2, &SCORE);
        assert!(said.contains(part), "{said}");
    }
}

/// Answers of fewer than four people never make 1.
#[test]
fn few_answers_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let list =
        |n: usize| json!([{"question_id": 1, "image_id": "a", "question": "q", "answers": vec!["a"; n]}]);
    let score = ["score", "--benchmark", "textvqa", "--annotations", "t.json", "--predictions", "p.jsonl"];
    write(at, "p.jsonl", r#"{"question_id":1,"answer":"a"}"#);
    for (n, few, want) in [(1, 1, 0.0), (3, 1, 2.0 / 3.0), (4, 0, 1.0)] {
        write(at, "t.json", &list(n).to_string());
        let (scores, _) = json_and_said(at, 0, &score);
        assert_eq!(scores["few_answers"], json!(few), "{n}");
        assert!((scores["score"].as_f64().unwrap() - want).abs() < 1e-12, "{n}: {scores}");
        let table = String::from_utf8(mpa(at, &score).stdout).unwrap();
        assert_eq!(table.contains("with less than 4 VQA accuracy stays below 1"), few > 0, "{table}");
    }
    let (paper, _) = json_and_said(at, 0, &[&score[..], &["--metric", "paper"]].concat());
    assert_eq!(paper["few_answers"], json!(0));
}

/// Two files: what is wrong is told with the file it is in; annotations that no question asks for are left out.
#[test]
fn okvqa_names_the_file_of_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let annotations = |ids: &[u32]| {
        let list: Vec<String> = ids
            .iter()
            .map(|id| format!("\n{}", json!({"question_id": id, "answers": [{"answer": "a"}]})))
            .collect();
        write(at, "a_val.json", &format!("{{\"annotations\":[{}]}}", list.join(",")));
    };
    write(at, "q_val.json", r#"{"questions":[{"question_id":1,"image_id":2,"question":"q"}]}"#);
    write(at, "p.jsonl", r#"{"question_id":1,"answer":"a"}"#);
    let files = ["--benchmark", "okvqa", "--annotations", "a_val.json", "--questions", "q_val.json"];
    let score = [&["score"], &files[..], &["--predictions", "p.jsonl"]].concat();
    let check = [&["data", "check"], &files[..]].concat();
    annotations(&[2, 1, 3]);
    let (scores, _) = json_and_said(at, 0, &score);
    assert_eq!((&scores["questions"], &scores["missing"]), (&json!(1), &json!(0)));
    let (report, _) = json_and_said(at, 1, &check);
    assert_eq!(report["without_question"], json!({"count": 2, "first": ["2", "3"]}));
    for ids in [[1, 2, 1], [2, 1, 1]] {
        annotations(&ids);
        let (_, said) = json_and_said(at, 2, &score);
        assert!(said.contains("a_val.json:4: question_id 1 was there before"), "{said}");
        let (report, _) = json_and_said(at, 1, &check);
        assert_eq!(report["duplicate_ids"]["first"], json!(["1 (again on line 4 of the annotations)"]));
    }
    annotations(&[2]);
    let (_, said) = json_and_said(at, 2, &score);
    assert!(said.contains("q_val.json:1: question_id 1 has no answers in a_val.json"), "{said}");
}

#[test]
fn empty_texts_are_none_in_a_download() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(
        at,
        "st.json",
        &ST.replace("\"q\",\"answers\":[\"mars\"]", "\" \",\"answers\":[\"\",\"\"]").replace("b.png", ""),
    );
    let check = ["data", "check", "--benchmark", "stvqa", "--annotations", "st.json"];
    let (report, _) = json_and_said(at, 1, &check);
    for (key, id) in [("without_question", "6"), ("without_answers", "6"), ("without_picture", "x")] {
        assert_eq!(report[key], json!({"count": 1, "first": [id]}), "{key}");
    }
    let blank = ST.replace("hello", "").replace("world", " ").replace("earth", "").replace("mars", "");
    write(at, "st.json", &blank);
    let (report, _) = json_and_said(at, 1, &check);
    assert_eq!((&report["unanswered"], &report["without_answers"]["count"]), (&json!(false), &json!(3)));
    let none = ST.replace("\"hello\"", "").replace("\"world\",\"earth\"", "").replace("\"mars\"", "");
    write(at, "st.json", &none);
    let (report, _) = json_and_said(at, 0, &check);
    assert_eq!((&report["unanswered"], &report["answers"]), (&json!(true), &json!(0)));
    assert!(String::from_utf8(mpa(at, &check).stdout).unwrap().contains("taken for a test split"));
}

#[test]
fn a_download_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "st.json", ST);
    let check = ["data", "check", "--benchmark", "stvqa", "--annotations", "st.json"];
    let (report, _) = json_and_said(at, 0, &check);
    assert_eq!(
        (&report["ok"], &report["questions"], &report["pictures"]),
        (&json!(true), &json!(3), &json!(2))
    );
    fs::create_dir(at.join("images")).unwrap();
    write(&at.join("images"), "a.png", "no picture");
    let bad = ST.replace("\"question_id\":6", "\"question_id\":5").replace("[\"hello\"]", "null");
    write(at, "st.json", &bad);
    let (report, said) = json_and_said(at, 1, &[&check[..], &["--images", "images"]].concat());
    assert_eq!(report["ok"], json!(false));
    for (key, first) in [
        ("duplicate_ids", "5 (lines 2 and 4)"),
        ("without_answers", "5"),
        ("missing_pictures", "b.png"),
        ("unreadable_pictures", "images/a.png: "),
    ] {
        assert_eq!(report[key]["count"], json!(1), "{key}");
        assert!(report[key]["first"][0].as_str().unwrap().starts_with(first), "{key}: {report}");
    }
    assert!(said.contains("mpa: st.json: 1 question ids that are there twice"), "{said}");
    fs::remove_file(at.join("images/a.png")).unwrap();
    for name in ["a", "b"] {
        fs::copy(format!("{GOLDEN}/images/cat.png"), at.join(format!("images/{name}.png"))).unwrap();
    }
    write(at, "st.json", ST);
    json_and_said(at, 0, &[&check[..], &["--images", "images"]].concat());
    json_and_said(at, 2, &[&check[..], &["--images", "gone"]].concat());
    write(at, "st.json", "{\"data\":[]}");
    json_and_said(at, 1, &check);
}

#[test]
fn a_model_is_evaluated_on_a_benchmark_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir_all(at.join("charts/png")).unwrap();
    for name in ["cat", "chart"] {
        fs::copy(format!("{GOLDEN}/images/{name}.png"), at.join(format!("charts/png/{name}.png"))).unwrap();
    }
    let list = json!([
        {"imgname": "chart.png", "query": "What is it?", "label": "7"},
        {"imgname": "cat.png", "query": "And this?", "label": "cat"},
        {"imgname": "gone.png", "query": "And that?", "label": "x"},
    ]);
    write(at, "c.json", &list.to_string());
    let model = format!("{GOLDEN}/smolvlm");
    let args = [
        "evaluate",
        "--model",
        &model,
        "--benchmark",
        "chartqa",
        "--annotations",
        "c.json",
        "--images",
        "charts",
        "--max-new-tokens",
        "3",
    ];
    let (first, said) = json_and_said(at, 0, &[&args[..], &["--out", "o"]].concat());
    assert_eq!(
        (&first["questions"], &first["missing"], &first["missing_ids"]),
        (&json!(3), &json!(1), &json!(["2"]))
    );
    assert!(said.contains("charts: has 1 of the 3 pictures of c.json not, such as \"gone.png\""), "{said}");
    // One that comes after its question was given up takes nothing away from the others.
    fs::copy(at.join("charts/png/cat.png"), at.join("charts/png/gone.png")).unwrap();
    let (late, said) = json_and_said(at, 0, &[&args[..], &["--out", "o"]].concat());
    assert!(late == first && !said.contains("has 1 of"), "{said}");
    fs::remove_file(at.join("charts/png/gone.png")).unwrap();
    let predictions = fs::read(at.join("o/predictions.jsonl")).unwrap();
    // What a kill after the first answer leaves.
    let end = predictions.iter().position(|&byte| byte == b'\n').unwrap();
    fs::write(at.join("o/predictions.jsonl"), &predictions[..end + 5]).unwrap();
    let (again, _) = json_and_said(at, 0, &[&args[..], &["--out", "o"]].concat());
    assert_eq!((again, fs::read(at.join("o/predictions.jsonl")).unwrap()), (first.clone(), predictions));
    let submission: Value = serde_json::from_slice(&fs::read(at.join("o/submission.json")).unwrap()).unwrap();
    assert_eq!((&submission[1]["question_id"], &submission[1]["annotation"]), (&json!(1), &json!("cat")));
    assert_eq!(submission[1]["answer"], lines(&at.join("o/predictions.jsonl"))[1]["prediction"]);
    assert_eq!((submission.as_array().unwrap().len(), &submission[2]["answer"]), (3, &json!("")));
    assert_eq!(lines(&at.join("o/per_question.jsonl")).len(), 3);
    let score = [
        "score",
        "--benchmark",
        "chartqa",
        "--annotations",
        "c.json",
        "--predictions",
        "o/predictions.jsonl",
    ];
    assert_eq!(json_and_said(at, 0, &score).0, first);
    // What it wrote is a list of questions as well: its pictures are named from its own folder.
    let own = [&args[..6], &["o/questions.jsonl"], &args[7..], &["--out", "deep/er"]].concat();
    assert_eq!(json_and_said(at, 0, &own).0["missing"], 1);
    // A folder without any of the pictures.
    let (_, said) = json_and_said(at, 2, &[&args[..8], &["o"], &args[9..], &["--out", "n"]].concat());
    assert!(said.contains("o: has 3 of the 3 pictures of c.json not") && !at.join("n").exists(), "{said}");
    // A mistake in the files is told before the folder is begun.
    write(at, "bad.json", "[{\"query\":\"q\",\"label\":\"1\"}]");
    let (_, said) = json_and_said(
        at,
        2,
        &[
            "evaluate",
            "--model",
            &model,
            "--benchmark",
            "chartqa",
            "--annotations",
            "bad.json",
            "--images",
            "charts",
            "--out",
            "n",
        ],
    );
    assert!(said.contains("bad.json:1: question_id 0 has no picture") && !at.join("n").exists(), "{said}");
    json_and_said(at, 2, &["evaluate", "--model", &model, "--out", "n"]);
    json_and_said(at, 2, &["evaluate", "--model", &model, "--benchmark", "chartqa", "--out", "n"]);
}

/// The servers of TextVQA and ST-VQA keep the answers of their test splits.
#[test]
fn a_split_without_answers_is_answered_and_not_scored() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("pictures")).unwrap();
    fs::copy(format!("{GOLDEN}/images/cat.png"), at.join("pictures/x.jpg")).unwrap();
    let question = |id: usize, more: &str| {
        format!("{{\"question_id\":{id},\"image_id\":\"x\",\"question\":\"what?\"{more}}}")
    };
    write(at, "test.json", &format!("{{\"data\":[{},{}]}}", question(7, ""), question(4, ",\"answers\":[]")));
    let check = |annotations: &str, code: i32| {
        json_and_said(at, code, &["data", "check", "--benchmark", "textvqa", "--annotations", annotations]).0
    };
    let found = check("test.json", 0);
    assert_eq!([&found["questions"], &found["answers"], &found["ok"]], [&json!(2), &json!(0), &json!(true)]);
    let model = format!("{GOLDEN}/smolvlm");
    let evaluate = |annotations: &str, code: i32| {
        let files = ["--annotations", annotations, "--images", "pictures", "--out", "o"];
        let start = ["evaluate", "--model", &model, "--benchmark", "textvqa", "--max-new-tokens", "2"];
        json_and_said(at, code, &[&start[..], &files].concat())
    };
    let (said, _) = evaluate("test.json", 0);
    assert_eq!(said, json!({"score": null, "submission": "o/submission.json"}));
    let submission: Value = serde_json::from_slice(&fs::read(at.join("o/submission.json")).unwrap()).unwrap();
    assert_eq!([&submission[0]["question_id"], &submission[1]["question_id"]], [&json!(7), &json!(4)]);
    assert!(submission[0]["answer"].is_string() && submission[0].get("annotation").is_none());
    assert!(!at.join("o/scores.json").exists() && !at.join("o/per_question.jsonl").exists());
    // With some answers, those that lack are a fault of the file; and no questions are no split.
    write(at, "half.json", &format!("[{},{}]", question(7, ",\"answers\":[\"a\"]"), question(4, "")));
    assert_eq!(check("half.json", 1)["without_answers"]["first"], json!(["4"]));
    assert!(evaluate("half.json", 2).1.contains("half.json:1: question_id 4 has no answers"));
    write(at, "none.json", "[]");
    assert!(evaluate("none.json", 2).1.contains("none.json: holds no questions"));
}

#[test]
fn the_commands_have_help_with_examples() {
    for command in [&["score"][..], &["data", "check"], &["evaluate"]] {
        let output = mpa(Path::new("."), &[command, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains("Example"), "{command:?}");
    }
}
