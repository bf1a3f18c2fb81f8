//! Records: what is read is what was written, mistakes are named by file, line and key, and no file makes the program panic.
use std::fs;
use std::path::{Path, PathBuf};

use mpa::data::append::Appender;
use mpa::data::files::{self, Rebase};
use mpa::data::metrics::{correct, plain};
use mpa::data::records::{self, MAX_LINE, Reader, Record};
use mpa::data::released;
use mpa::error::Error;
use mpa::mpa::annotate::Parser;
use mpa::mpa::config::Config;
use mpa::mpa::level;
use proptest::prelude::*;

fn file(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn unknown_keys_pass_through_in_a_fixed_order() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        "{\"zeta\":[1,{\"b\":2.5}],\"question\":\"q é\",\"id\":7,\"alpha\":null,\"answers\":[\"a\",3]}\n";
    let path = file(folder.path(), "r.jsonl", text);
    let record = records::read(&path).unwrap().remove(0);
    assert_eq!((record.id.as_str(), record.line), ("7", 1));
    let want = "{\"id\":\"7\",\"question\":\"q é\",\"answers\":[\"a\",\"3\"],\"alpha\":null,\"zeta\":[1,{\"b\":2.5}]}\n";
    assert_eq!(String::from_utf8(record.to_line().unwrap()).unwrap(), want);
}

#[test]
fn ids_default_to_the_number_of_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        "r.jsonl",
        "\u{feff}{\"question\":\"a\"}\r\n\n  \n{\"id\":\"x\"}\n{\"question\":\"c\"}",
    );
    let records = records::read(&path).unwrap();
    let got: Vec<(&str, usize)> = records.iter().map(|r| (r.id.as_str(), r.line)).collect();
    assert_eq!(got, [("0", 1), ("x", 4), ("2", 5)]);
}

/// `answer` is what the teacher wrote and the models were judged by; of labels any may be learned.
#[test]
fn what_is_learned_is_the_answer_before_the_first_of_answers() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"question\":\"q\",\"answers\":[\"a\",\"b\"],\"answer\":\"b\"}\n{\"question\":\"q\",\"answers\":[\"a\",\"b\"]}\n";
    let learned = level::examples(&file(folder.path(), "r.jsonl", text)).unwrap();
    assert_eq!(learned.iter().map(|example| example.answer.as_str()).collect::<Vec<_>>(), ["b", "a"]);
}

#[test]
fn mistakes_are_named_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{{\"id\":\"{}\"}}", "x".repeat(MAX_LINE));
    let cases: [(&str, &str); 8] = [
        (
            "{\"id\":\"a\",\"question\":\"q\"}\n{\"image\":\"i\",\"more\":1}\n",
            ":2: record \"1\": missing key `question`; it has image, more",
        ),
        ("{\"question\":3.5}\n{\"question\":[]}\n", ":2: key `question`: expected a string, got an array"),
        (
            "{\"question\":\"q\",\"answers\":\"x\"}",
            ":1: key `answers`: expected a list of strings, got a string",
        ),
        (
            "{\"id\":\"a\",\"question\":\"q\"}\n\n{\"id\":\"a\",\"question\":\"r\"}",
            ":3: id \"a\" was used before, on line 1",
        ),
        ("{\"id\":1,\"question\":\"q\"}\n{\"question\":\"r\"}", ":2: id \"1\" was used before, on line 1"),
        ("[1]", ":1: expected a JSON object, got an array"),
        ("{\"question\":\"q\"}\n{\"question\":", ":2: not JSON: EOF"),
        (&long, ":1: the line is longer than"),
    ];
    for (text, want) in cases {
        let path = file(folder.path(), "r.jsonl", text);
        let error = records::check(&path, &["question"]).unwrap_err();
        assert!(error.to_string().contains(&format!("r.jsonl{want}")), "{want}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    let path = file(folder.path(), "r.jsonl", "{\"question\":\"q\"}");
    let error = records::check(&path, &["question", "answer"]).unwrap_err().to_string();
    assert!(error.contains("missing key `answer` (nor `answers`)"), "{error}");
    let rejected = file(folder.path(), "s.jsonl", "{\"rejected\":\"unparsed\"}\n{\"question\":\"q\"}");
    assert_eq!(records::check(&rejected, &["question"]).unwrap(), 1);
    assert!(matches!(records::read(folder.path()), Err(Error::Input { .. })));
    assert_eq!(records::read(&folder.path().join("none")).unwrap_err().exit_code(), 2);
}

#[test]
fn an_appender_goes_on_after_the_last_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/out.jsonl");
    let record =
        |id: &str| Record { id: id.to_string(), answer: Some("ä\n".to_string()), ..Record::default() };
    let mut out = Appender::open(&path).unwrap();
    for id in ["a", "b", "c"] {
        out.append(&record(id)).unwrap();
    }
    assert!(Appender::open(&path).is_err(), "two writers");
    out.finish().unwrap();
    let whole = fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let mut out = Appender::open(&path).unwrap();
        let done = whole[..cut].iter().filter(|b| **b == b'\n').count();
        let ids: Vec<&str> = out.done().iter().map(|done| done.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c"][..done], "cut at {cut}");
        for id in &["a", "b", "c"][done..] {
            out.append(&record(id)).unwrap();
        }
        drop(out);
        assert_eq!(fs::read(&path).unwrap(), whole, "cut at {cut}");
    }
    let bad = file(folder.path(), "bad.jsonl", "{\"id\":\"a\"}\nnonsense\n");
    let error = Appender::open(&bad).err().unwrap().to_string();
    assert!(error.contains("bad.jsonl:2"), "{error}");
    assert_eq!(fs::read(&bad).unwrap(), b"{\"id\":\"a\"}\nnonsense\n", "what cannot be read is left alone");
}

#[test]
fn whole_files_replace_what_a_killed_process_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    file(folder.path(), ".s.json.tmp", "half of");
    files::write(&path, b"whole").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn paths_follow_from_one_file_to_another() {
    let root = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(root.path()).unwrap();
    for folder in ["data/pics", "run/evaluate/teacher", "elsewhere/real"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("data/pics/p.png"), "p").unwrap();
    fs::create_dir(root.join("run/inputs")).unwrap();
    std::os::unix::fs::symlink(root.join("data"), root.join("run/inputs/eval")).unwrap();
    std::os::unix::fs::symlink(root.join("elsewhere/real"), root.join("run/link")).unwrap();
    let rebased = |from: &str, to: &str, path: &str| {
        let (from, to) = (root.join(from), root.join(to));
        let path = Rebase::new(&from, &to).unwrap().path(path);
        let found = to.parent().unwrap().join(&path).canonicalize().ok();
        assert_eq!(found, from.parent().unwrap().join("pics/p.png").canonicalize().ok(), "{path}");
        path
    };
    assert_eq!(rebased("data/q.jsonl", "data/o.jsonl", "pics/p.png"), "pics/p.png");
    assert_eq!(rebased("data/q.jsonl", "run/o.jsonl", "pics/p.png"), "../data/pics/p.png");
    // Links stay where the way up does not lead through one ...
    let via = rebased("run/inputs/eval/q.jsonl", "run/evaluate/teacher/o.jsonl", "pics/p.png");
    assert_eq!(via, "../../inputs/eval/pics/p.png");
    // ... and are followed where it does.
    assert_eq!(rebased("data/q.jsonl", "run/link/o.jsonl", "pics/p.png"), "../../data/pics/p.png");
    let absolute = root.join("data/pics/p.png").to_str().unwrap().to_string();
    assert_eq!(rebased("data/q.jsonl", "run/o.jsonl", &absolute), absolute);
}

#[test]
fn annotations_are_parsed_as_in_the_released_code() {
    let parser = Parser::new().unwrap();
    // Made with Python's re.search and IGNORECASE; the question keeps its mark here, and both are stripped.
    let cases: [(&str, Option<(&str, &str)>); 12] = [
        ("Question: What is it?\nAnswer: A cat", Some(("What is it?", "A cat"))),
        ("question:what?ANSWER:x", Some(("what?", "x"))),
        ("Sure! Question: Is it A? Or B?\nAnswer:   b. \nAnswer: c", Some(("Is it A?", "b."))),
        ("Question:\n\n What is it?\n\nAnswer:\nred", Some(("What is it?", "red"))),
        ("Question: a\nb? Answer: c", None),
        ("Question: a\nQuestion: b? Answer: c", Some(("b?", "c"))),
        ("Answer: 7\nQuestion: how many?", Some(("how many?", "7"))),
        ("Question: What is it\nAnswer: A cat", None),
        ("Question: ?\nAnswer: A cat", None),
        ("Question: What?\nAnswer:  ", None),
        ("Question: What?", None),
        ("", None),
    ];
    for (text, want) in cases {
        let got = parser.parse(text);
        let got = got.as_ref().map(|(q, a)| (q.as_str(), a.as_str()));
        assert_eq!(got, want, "{text:?}");
    }
}

#[test]
fn accuracy_forgives_case_space_and_outer_punctuation_only() {
    let same = [
        ("Red.", "red"),
        ("  the  Cat ", "The cat"),
        ("\"7\"", "7"),
        ("-7", "-7."),
        ("50%", "50%"),
        ("-$7", "-7"),
        ("\u{2212}7", "-7"),
        ("$7.", "7"),
        ("- 7", "7"),
        (".5", "0.5"),
        ("...5", "5"),
        (".net", "net"),
        ("?", "?"),
    ];
    for (a, b) in same {
        assert!(correct(a, &["x", b]), "{a} {b}: {} {}", plain(a), plain(b));
    }
    for (a, b) in [
        ("1.5", "15"),
        ("a b", "ab"),
        ("-7", "7"),
        ("-.5", ".5"),
        (".5", "5"),
        ("50%", "50"),
        ("", "?"),
        ("redder", "red"),
        ("3-4", "34"),
    ] {
        assert!(!correct(a, &[b]), "{a} {b}: {} {}", plain(a), plain(b));
    }
    assert!(!correct("a", &[]));
}

const LINES: &str = "{\"id\":\"a\",\"image\":\"p.png\",\"question\":\"q?\",\"answers\":[\"x\",1],\"more\":{\"k\":[1,2,{}]}}\n\
                     {\"id\":\"b\",\"question_id\":4,\"predictions\":\"y\",\"PA_answer\":\"é\",\"rejected\":null}\n";
const CONFIG: &str = "seed = 1\n[models]\nteacher = \"t\"\nstudent = \"s\"\n[annotate]\nimages = \"i\"\ntask = \"text\"\nsamples = 2\n\
                      temperature = 0.5\n[level]\narms = [\"leveled\"]\nlr = 1e-3\n[evaluate]\nquestions = \"q.jsonl\"\n";

/// `text` with a few bytes changed, taken out or put in.
fn mutated(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let change = (
        any::<prop::sample::Index>(),
        0..4_u8,
        prop::sample::select(b"\"{}[]:,\\\n=.#-e0'\xff\x00\xc3u".to_vec()),
    );
    prop::collection::vec(change, 1..6).prop_map(move |changes| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, kind, byte) in changes {
            let at = at.index(bytes.len().max(1));
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.truncate(at),
                _ => bytes.insert(at.min(bytes.len()), byte),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_records_are_read_or_refused(bytes in mutated(LINES), array in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let mut text = bytes;
        if array {
            text.iter_mut().filter(|b| **b == b'\n').for_each(|b| *b = b',');
            text.insert(0, b'[');
            text.extend(b"{}]");
        }
        let path = file(folder.path(), "r.jsonl", &text);
        let read = released::read(&path);
        if let Err(error) = &read {
            prop_assert_eq!(error.exit_code(), 2);
            prop_assert!(error.to_string().contains("r.jsonl"));
        }
        // What was read survives being written and read again.
        if !array && let Ok(records) = read {
            let lines: Vec<u8> = records.iter().flat_map(|r| r.to_line().unwrap()).collect();
            let again = file(folder.path(), "again.jsonl", &lines);
            for (a, b) in records.into_iter().zip(Reader::open(&again).unwrap()) {
                let b = b.unwrap();
                prop_assert_eq!(Record { line: b.line, named: true, ..a }, b);
            }
        }
        let _ = Appender::open(&path);
    }

    #[test]
    fn mutated_configs_are_read_or_refused(bytes in mutated(CONFIG)) {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), "c.toml", &bytes);
        match Config::read(&path) {
            Ok(config) => {
                // What is written out is read as the same.
                let again = file(folder.path(), "d.toml", config.to_toml().unwrap());
                prop_assert_eq!(Config::read(&again).unwrap(), config);
            }
            Err(error) => {
                prop_assert_eq!(error.exit_code(), 2);
                prop_assert!(error.to_string().contains("c.toml"));
            }
        }
    }

    #[test]
    fn any_text_is_parsed_or_not(text in "\\PC*") {
        let _ = Parser::new().unwrap().parse(&text);
        let _ = plain(&text);
    }
}

#[test]
fn deep_and_wide_json_is_refused_without_much_memory() {
    let folder = tempfile::tempdir().unwrap();
    for text in [
        "[".repeat(1 << 20),
        "{\"a\":".repeat(1 << 20),
        format!("[{}", "{\"question_id\":1,".repeat(1 << 16)),
    ] {
        let path = file(folder.path(), "deep.json", &text);
        let error = released::read(&path).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().len() < 1000);
    }
}
