//! Layouts, streaming, and mistakes in files.
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use mpa::data::benchmarks::elements::Elements;
use mpa::data::benchmarks::{Benchmark, Files};
use mpa::data::records::{MAX_LINE, Record};
use mpa::error::Error;
use serde_json::json;

use super::memory::peak;

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn read(benchmark: Benchmark, annotations: &Path, questions: Option<&Path>) -> Result<Vec<Record>, Error> {
    Files { benchmark, annotations, questions }.open()?.collect()
}

/// id, image, question, answers
#[track_caller]
fn is(record: &Record, id: &str, image: &str, question: &str, answers: &[&str]) {
    let got = (record.id.as_str(), record.image.as_deref(), record.question.as_deref());
    assert_eq!(got, (id, Some(image), Some(question)));
    assert_eq!(record.answers.as_deref().unwrap(), answers);
}

#[test]
fn official_layouts_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = r#"{"dataset_type":"val","dataset_version":"0.5.1","n":-1.5e3,"info":{"a":[1]},"data":[
      {"image_id":"00c3","question_id":7,"question":"plane?","answers":["a","b"],"image_classes":[]},
      {"image_id":"00c4","question_id":"8","question":"car?","answers":["c"]}],"after":null}"#;
    let records = read(Benchmark::Textvqa, &file(at, "t.json", text), None).unwrap();
    is(&records[0], "7", "00c3.jpg", "plane?", &["a", "b"]);
    assert_eq!((records[0].line, &records[0].extra["question_id"]), (2, &json!(7)));
    assert_eq!((records[1].id.as_str(), &records[1].extra["question_id"]), ("8", &json!("8")));

    let text = r#"{"data":[{"file_path":"VG/1/2.jpg","question":"q","answers":["x"],"question_id":3,"file_name":"2.jpg"}]}"#;
    is(&read(Benchmark::Stvqa, &file(at, "s.json", text), None).unwrap()[0], "3", "VG/1/2.jpg", "q", &["x"]);

    // ChartQA's own files have no ids: the place in the file is one.
    let text =
        r#"[{"imgname":"1.png","query":"q","label":"47"},{"imgname":"2.png","query":"r","label":4.5}]"#;
    let records = read(Benchmark::Chartqa, &file(at, "c.json", text), None).unwrap();
    is(&records[1], "1", "2.png", "r", &["4.5"]);
    assert_eq!(records[1].extra["question_id"], json!(1));
    assert!(read(Benchmark::Chartqa, &file(at, "e.json", " [ ] \n"), None).unwrap().is_empty());
}

const QUESTIONS: &str = r#"{"data_subtype":"train2014","questions":[
  {"image_id":51606,"question":"one?","question_id":1},{"image_id":2,"question":"two?","question_id":2},
  {"image_id":3,"question":"three?","question_id":3}]}"#;

fn annotation(id: usize) -> String {
    format!(r#"{{"image_id":9,"question_id":{id},"answers":[{{"answer":"a{id}","raw_answer":"raw"}}]}}"#)
}

#[test]
fn okvqa_is_joined_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let questions = file(at, "q.json", QUESTIONS);
    for order in [[1, 2, 3], [3, 1, 2], [3, 2, 1]] {
        let list = order.map(annotation).join(",");
        let annotations = file(at, "a.json", &format!("{{\"annotations\":[{list}]}}"));
        let records = read(Benchmark::Okvqa, &annotations, Some(&questions)).unwrap();
        assert_eq!(records.len(), 3);
        is(&records[0], "1", "COCO_train2014_000000051606.jpg", "one?", &["a1"]);
        is(&records[2], "3", "COCO_train2014_000000000003.jpg", "three?", &["a3"]);
    }
    let list = [annotation(2), annotation(9)].join(",");
    let annotations = file(at, "a.json", &format!("{{\"annotations\":[{list}]}}"));
    let records = read(Benchmark::Okvqa, &annotations, Some(&questions)).unwrap();
    let ids: Vec<(&str, bool, bool)> =
        records.iter().map(|r| (r.id.as_str(), r.question.is_some(), r.answers.is_some())).collect();
    assert_eq!(ids, [("1", true, false), ("2", true, true), ("3", true, false)]);
    let mut samples =
        Files { benchmark: Benchmark::Okvqa, annotations: &annotations, questions: Some(&questions) }
            .open()
            .unwrap();
    assert_eq!(samples.by_ref().count(), 3);
    assert_eq!(samples.left().map(|annotation| annotation.unwrap().id).collect::<Vec<_>>(), ["9"]);
    // Without data_subtype the name of the file tells.
    let text = r#"[{"image_id":5,"question":"q","question_id":1,"answers":["x","x"]}]"#;
    let records = read(Benchmark::Okvqa, &file(at, "okvqa_val_combine.json", text), None).unwrap();
    is(&records[0], "1", "COCO_val2014_000000000005.jpg", "q", &["x", "x"]);
    let usage = read(Benchmark::Stvqa, &annotations, Some(&questions)).unwrap_err();
    assert!(matches!(usage, Error::Usage(_)), "{usage}");
}

#[test]
fn the_papers_lists_and_our_own_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let asked = "Answer the following question in a single word or phrase.";
    let list = json!([
        {"question_id": 1, "image_path": "p/1.jpg", "PA_question": "pa?", "PA_answer": "yes"},
        {"id": "c", "conversations": [
            {"from": "user", "value": format!("Picture 1: <img>p/2.jpg</img>\nwho? {asked}")},
            {"from": "assistant", "value": "me"}]},
        {"messages": [
            {"role": "user", "content": format!("<image>what? {asked}")},
            {"role": "assistant", "content": "it"}], "images": ["p/3.jpg"]},
        {"id": 4, "messages": [
            {"role": "user", "content": [{"type": "image", "image": "p/4.jpg"}, {"type": "text", "text": "why?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "so"}]}]},
    ]);
    let records = read(Benchmark::Textvqa, &file(at, "l.json", &list.to_string()), None).unwrap();
    is(&records[0], "1", "p/1.jpg", "pa?", &["yes"]);
    is(&records[1], "c", "p/2.jpg", "who?", &["me"]);
    is(&records[2], "2", "p/3.jpg", "what?", &["it"]);
    is(&records[3], "4", "p/4.jpg", "why?", &["so"]);
    let list = json!([
        {"image_id": 9, "qas": [{"question_id": 1, "question": "q", "answers": ["x"]}, {"question_id": 2, "question": "r", "answers": ["y"]}]},
        {"question_id": 3, "image_path": "p/3.jpg", "ground_truth_question": "g", "predicted_question": "pq?", "predicted_answer": "pa"},
        {"question_id": 4, "image_path": "p/4.jpg", "predicted_question": null, "predicted_answer": null},
    ]);
    let records = read(Benchmark::Okvqa, &file(at, "okvqa_train.json", &list.to_string()), None).unwrap();
    is(&records[0], "1", "COCO_train2014_000000000009.jpg", "q", &["x"]);
    is(&records[1], "2", "COCO_train2014_000000000009.jpg", "r", &["y"]);
    is(&records[2], "3", "p/3.jpg", "pq?", &["pa"]);
    assert_eq!((&records[3].question, &records[3].answers, records.len()), (&None, &None, 4));
    let text = "{\"id\":\"r\",\"image\":\"i.png\",\"rejected\":\"unparsed\",\"annotation\":\"?\"}\n\
                {\"id\":\"a\",\"image\":\"i.png\",\"question\":\"q\",\"answer\":\"x\"}\n";
    is(&read(Benchmark::Stvqa, &file(at, "o.jsonl", text), None).unwrap()[0], "a", "i.png", "q", &["x"]);
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let held = |count: usize| {
        let path = folder.path().join("large.json");
        let mut out = BufWriter::new(File::create(&path).unwrap());
        write!(out, "{{\"data\":[").unwrap();
        for i in 0..count {
            let comma = if i == 0 { "" } else { "," };
            let answers = ["an answer of some length"; 10];
            let element = json!({"image_id": "x", "question_id": i, "question": "what?", "answers": answers});
            write!(out, "{comma}{element}").unwrap();
        }
        write!(out, "]}}").unwrap();
        drop(out);
        let files = Files { benchmark: Benchmark::Textvqa, annotations: &path, questions: None };
        let (seen, bytes) =
            peak(|| files.open().unwrap().map(|r| r.unwrap().answers.unwrap().len()).sum::<usize>());
        assert_eq!(seen, 10 * count);
        (bytes, fs::metadata(&path).unwrap().len())
    };
    let ((small, _), (large, size)) = (held(100), held(20_000));
    assert!(size > 5 << 20, "{size}");
    // The reader's buffer and one record.
    assert!(large < 64 << 10 && large <= small + 1024, "{small} then {large} bytes");
}

#[test]
fn mistakes_name_the_file_and_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("[{{\"query\":\"{}\"}}]", "x".repeat(MAX_LINE));
    for (text, part) in [
        ("", "x.json:1: not JSON: expected a JSON list, or an object with one, got the end of the file"),
        ("7", "got \"7\""),
        ("[\n{\"imgname\":\"a\",}]", "x.json:2: not JSON, in or after element 0 (from 0)"),
        ("[{}\n{}]", "x.json:2: not JSON: expected `,` or `]` in the list, got \"{\""),
        ("[{}", "expected `,` or `]` in the list, got the end of the file"),
        ("[{}]\n\nx", "x.json:3: not JSON: expected the end of the file, got \"x\""),
        ("[{},]", "not JSON, in or after element 1"),
        ("[{},7]", "element 1 (from 0): expected an object, got a number"),
        ("{}", "expected a list under the key `data`; its keys: none"),
        ("{\"dat\":[],\"n\":1}", "expected a list under the key `data`; its keys: dat, n"),
        ("{\"data\":{}}", "expected a list under `data`, got \"{\""),
        ("{\"data\":[],\"data\":[]}", "key `data` is there twice"),
        ("{\"data\":[]", "expected `,` or `}` behind a value, got the end of the file"),
        ("{\"n\":1e,\"data\":[]}", "not JSON"),
        ("{\"n\" 1}", "expected `:` behind a key"),
        ("[{\"qas\":[]}]", "element 0 (from 0): key `qas`: expected a list of questions, got an array"),
        ("[{\"qas\":[1]}]", "element 0 (from 0): key `qas`: expected objects, got a number in it"),
        ("[{\"label\":[{\"x\":1}]}]", "element 0 (from 0): key `label`: missing key `answer`; it has x"),
        ("[{\"query\":[]}]", "key `query`: expected a string, got an array"),
        (&long, "it is longer than"),
    ] {
        let path = file(folder.path(), "x.json", text);
        let error = read(Benchmark::Chartqa, &path, None).unwrap_err();
        assert!(error.to_string().contains(part), "{:?}: {error}", &text[..text.len().min(40)]);
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    let path = file(folder.path(), "x.json", "{\"data\":[{\"image_id\":1,\"question\":\"q\"}]}");
    let error = read(Benchmark::Textvqa, &path, None).unwrap_err().to_string();
    assert!(
        error.contains("element 0 (from 0): missing key `question_id`; it has image_id, question"),
        "{error}"
    );
    // An id that is null is none; pictures without a name neither.
    let text = r#"[{"question_id":null,"id":4,"question":"q","image_id":""},{"question_id":null,"id":5,"image_id":"7"}]"#;
    let records = read(Benchmark::Textvqa, &file(folder.path(), "x.json", text), None).unwrap();
    let said: Vec<_> = records.iter().map(|r| (r.id.as_str(), r.image.as_deref())).collect();
    assert_eq!(said, [("4", None), ("5", Some("7.jpg"))]);
    // Nothing comes after an error.
    let path = file(folder.path(), "x.json", "[{},7,{}]");
    assert_eq!(Elements::open(&path, "data").unwrap().map(|e| e.is_ok()).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn the_name_of_a_list_tells_its_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let text = json!([{"question_id": 1, "image_id": 9, "answers": ["x"]}]).to_string();
    for (name, split) in [
        ("okvqa_val_new.json", Some("val")),
        ("mscoco_val2014_annotations.json", Some("val")),
        ("okvqa_train_eval.json", Some("train")),
        ("train2014_val.json", Some("train")),
        ("evaluation.json", None),
    ] {
        let record = read(Benchmark::Okvqa, &file(folder.path(), name, &text), None).unwrap().remove(0);
        assert_eq!(record.image, split.map(|split| format!("COCO_{split}2014_000000000009.jpg")), "{name}");
    }
}

#[test]
fn a_mark_of_utf_8_is_passed_by_and_one_of_utf_16_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("list.json", "\u{feff}[]"), ("lines.jsonl", "\u{feff}")] {
        let open = |bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            read(Benchmark::Chartqa, &path, None)
        };
        assert!(open(text.as_bytes()).unwrap().is_empty());
        let units: Vec<u16> = text.encode_utf16().collect();
        for order in [u16::to_le_bytes, u16::to_be_bytes] {
            let bytes: Vec<u8> = units.iter().flat_map(|&unit| order(unit)).collect();
            let said = open(&bytes).unwrap_err().to_string();
            assert!(said.ends_with(&format!("{name}: is UTF-16, expected UTF-8")), "{said}");
        }
    }
}
