//! The Parity Identifier: the released code's normalisation and rule, bit for bit; what is joined, counted and written.
use std::fs;
use std::path::{Path, PathBuf};

use mpa::data::metrics::Norm;
use mpa::data::records;
use mpa::mpa::select::{self, Counts, Outputs, Rule};

/// Code points that Unicode 14 (Python 3.11's) assigns, as hexadecimal ranges; later ones are none of Python 3.11's business.
const ASSIGNED: &str = include_str!("unicode14.txt");

fn assigned() -> impl Iterator<Item = char> {
    ASSIGNED.lines().flat_map(|line| {
        let (first, last) = line.split_once(' ').unwrap();
        let code = |text| u32::from_str_radix(text, 16).unwrap();
        (code(first)..=code(last)).filter_map(char::from_u32)
    })
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3))
}

/// Both numbers come from Python 3.11: FNV-1a over all assigned characters of '1' or '0' for `re.match(r'\w', c)`, and of `c.lower()`.
#[test]
fn every_character_is_lowered_and_kept_as_in_python() {
    let norm = Norm::new().unwrap();
    let (mut words, mut lower) = (0xCBF2_9CE4_8422_2325, 0xCBF2_9CE4_8422_2325);
    for c in assigned() {
        words = fnv(words, if norm.keeps(c) { b"1" } else { b"0" });
        lower = fnv(lower, c.to_string().to_lowercase().as_bytes());
    }
    assert_eq!(words, 0x01C2_55D4_AA2E_00D9, "letters and digits");
    assert_eq!(lower, 0xA5C4_19AC_B45B_D2C0, "lower case");
}

/// Right sides from Python 3.11: `re.sub(r'[^\w]', '', text.lower())`.
#[test]
fn texts_are_normalised_as_in_python() {
    let norm = Norm::new().unwrap();
    let cases = [
        ("", ""),
        ("  ", ""),
        ("Hello, World!", "helloworld"),
        (
            "\u{39f}\u{394}\u{3a5}\u{3a3}\u{3a3}\u{395}\u{3a5}\u{3a3}",
            "\u{3bf}\u{3b4}\u{3c5}\u{3c3}\u{3c3}\u{3b5}\u{3c5}\u{3c2}",
        ),
        ("\u{391}\u{3a3} \u{391}\u{3a3}.", "\u{3b1}\u{3c2}\u{3b1}\u{3c2}"),
        ("\u{130}stanbul", "istanbul"),
        ("STRASSE \u{df} \u{1e9e}", "strasse\u{df}\u{df}"),
        ("\u{fb01}", "\u{fb01}"),
        ("na\u{ef}ve caf\u{e9}", "na\u{ef}vecaf\u{e9}"),
        ("x_y-z", "x_yz"),
        ("3.5%", "35"),
        ("\u{661}\u{662}\u{663}", "\u{661}\u{662}\u{663}"),
        ("\u{bd}", "\u{bd}"),
        ("\u{2167}", "\u{2177}"),
        ("\u{24d0}", ""),
        ("\u{4e2d}\u{6587}\u{ff0c}\u{5b57}", "\u{4e2d}\u{6587}\u{5b57}"),
        ("\u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940}", "\u{939}\u{928}\u{926}"),
        ("a\u{200d}b", "ab"),
        ("e\u{301}", "e"),
        ("\u{212a}", "k"),
        ("\u{17f}", "\u{17f}"),
        ("\u{3a3}", "\u{3c3}"),
        ("a\u{3a3}\u{301}", "a\u{3c2}"),
        ("a\u{3a3}b", "a\u{3c3}b"),
        ("a.\u{3a3}", "a\u{3c2}"),
        ("\u{1c}", ""),
        ("\u{aa} \u{ba}", "\u{aa}\u{ba}"),
        ("\u{24b6}", ""),
        ("\u{b2}", "\u{b2}"),
        ("\u{203f}", ""),
        ("\u{1f389} party", "party"),
    ];
    for (text, want) in cases {
        assert_eq!(norm.apply(text), want, "{text:?}");
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

/// id, answer, teacher, student -> lines of both files.
fn files(folder: &Path, rows: &[[&str; 4]]) -> (PathBuf, PathBuf) {
    let line = |id: &str, answer: &str, prediction: &str| {
        let value = serde_json::json!({"id": id, "image": "p/x.png", "question": "q?", "answer": answer, "prediction": prediction, "k": 1});
        format!("{value}\n")
    };
    let teacher: String = rows.iter().map(|[id, answer, teacher, _]| line(id, answer, teacher)).collect();
    // The order of the student's file does not matter.
    let student: String =
        rows.iter().rev().map(|[id, answer, _, student]| line(id, answer, student)).collect();
    (write(folder, "teacher.jsonl", &teacher), write(folder, "student.jsonl", &student))
}

const ROWS: [[&str; 4]; 7] = [
    ["keep", "Red", "It is RED.", "blue"],
    ["inside", "red", "red", "a redder one"],
    ["off", "red", "blue", "green"],
    ["both", "A-1", "a1", "A 1!"],
    ["empty", "...", "whatever", "something"],
    ["silent", "x", "x", ""],
    ["mark", "e\u{301}t\u{e9}", "et\u{e9}", "\u{e9}t\u{e9}"],
];

fn ids(path: &Path) -> Vec<String> {
    records::read(path).unwrap().into_iter().map(|r| r.id).collect()
}

#[test]
fn contains_is_the_released_rule() {
    let folder = tempfile::tempdir().unwrap();
    let (teacher, student) = files(folder.path(), &ROWS);
    let out = |name: &str| folder.path().join("out").join(name);
    let (parity, rehearsal, rejected) = (out("parity.jsonl"), out("rehearsal.jsonl"), out("rejected.jsonl"));
    let outputs = Outputs { parity: Some(&parity), rehearsal: Some(&rehearsal), rejected: Some(&rejected) };
    let counts = select::run(&teacher, &student, Rule::Contains, outputs).unwrap();
    assert_eq!(ids(&parity), ["keep", "silent", "mark"]);
    assert_eq!(ids(&rehearsal), ["inside", "both", "empty"]);
    assert_eq!(ids(&rejected), ["off"]);
    let want = Counts {
        records: 7,
        teacher_consistent: 6,
        student_wrong: 4,
        kept: 3,
        rehearsal: 3,
        rejected: [("student_right".to_string(), 3), ("teacher_inconsistent".to_string(), 1)].into(),
    };
    assert_eq!(counts, want);
    let line = fs::read_to_string(&parity).unwrap();
    let want = "{\"id\":\"keep\",\"image\":\"../p/x.png\",\"question\":\"q?\",\"answer\":\"Red\",\"k\":1,\"student\":\"blue\",\"teacher\":\"It is RED.\"}";
    assert_eq!(line.lines().next(), Some(want));
}

#[test]
fn exact_asks_for_equality() {
    let folder = tempfile::tempdir().unwrap();
    let (teacher, student) = files(folder.path(), &ROWS);
    let parity = folder.path().join("parity.jsonl");
    let outputs = Outputs { parity: Some(&parity), ..Outputs::default() };
    let counts = select::run(&teacher, &student, Rule::Exact, outputs).unwrap();
    assert_eq!(ids(&parity), ["inside", "silent", "mark"]);
    assert_eq!((counts.teacher_consistent, counts.rehearsal), (4, 1));
}

#[test]
fn the_released_layout_is_read_and_its_keys_stay() {
    let folder = tempfile::tempdir().unwrap();
    let element = |id: u32, prediction: &str| {
        serde_json::json!({"question_id": id, "image_path": "x.png", "PA_question": "q", "PA_answer": "Two", "predictions": prediction,
                           "answer": "kept out of the way", "dataset": "chartqa"})
    };
    let teacher = serde_json::json!([element(5, "two"), element(6, "2"), element(7, "TWO!")]).to_string();
    let student =
        format!(" \n{}", serde_json::json!([element(5, "three"), element(6, "2"), element(7, "twofold")]));
    let (teacher, student) =
        (write(folder.path(), "t.json", &teacher), write(folder.path(), "s.json", &student));
    let parity = folder.path().join("parity.jsonl");
    let outputs = Outputs { parity: Some(&parity), ..Outputs::default() };
    let counts = select::run(&teacher, &student, Rule::Contains, outputs).unwrap();
    assert_eq!((counts.kept, counts.rehearsal, counts.records), (1, 1, 3));
    let record = records::read(&parity).unwrap().remove(0);
    assert_eq!((record.id.as_str(), record.image.as_deref()), ("5", Some("x.png")));
    assert_eq!((record.question.as_deref(), record.answer.as_deref()), (Some("q"), Some("Two")));
    assert_eq!((&record.extra["PA_answer"], &record.extra["dataset"]), (&"Two".into(), &"chartqa".into()));
}

/// The released annotator writes null where it found no answer, and its comparison takes that for an empty text.
#[test]
fn what_the_released_code_could_not_parse_is_an_empty_text() {
    let folder = tempfile::tempdir().unwrap();
    let list = |prediction: Option<&str>| {
        let element = |id: u32, answer: Option<&str>, prediction: Option<&str>| serde_json::json!({"question_id": id, "PA_question": "q", "PA_answer": answer, "predictions": prediction});
        format!(
            "\u{feff}{}",
            serde_json::json!([element(1, None, Some("x")), element(2, Some("two"), prediction)])
        )
    };
    let teacher = write(folder.path(), "t.json", &list(Some("two")));
    let student = write(folder.path(), "s.json", &list(None));
    let parity = folder.path().join("parity.jsonl");
    let outputs = Outputs { parity: Some(&parity), ..Outputs::default() };
    let counts = select::run(&teacher, &student, Rule::Contains, outputs).unwrap();
    assert_eq!((counts.kept, counts.records), (1, 2));
    assert_eq!(records::read(&parity).unwrap()[0].id, "2");
}

#[test]
fn what_does_not_fit_together_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (teacher, student) = files(folder.path(), &ROWS);
    let fails = |teacher: &Path, student: &Path| {
        let error = select::run(teacher, student, Rule::Contains, Outputs::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let (_, short) = files(&folder.path().join("short"), &ROWS[..3]);
    let text = fails(&teacher, &short);
    assert!(
        text.contains("teacher.jsonl:4: id \"both\" is not in the student's file") && text.contains("short"),
        "{text}"
    );
    let (short, _) = files(&folder.path().join("short"), &ROWS[1..]);
    let text = fails(&short, &student);
    assert!(text.contains("student.jsonl:7: id \"keep\" is not in the teacher's file"), "{text}");
    let mut other = ROWS;
    other[2][1] = "green";
    let (_, changed) = files(&folder.path().join("changed"), &other);
    let text = fails(&teacher, &changed);
    assert!(text.contains("teacher.jsonl:3: id \"off\": `answer` is \"red\", but \"green\" in"), "{text}");
    let bare = write(folder.path(), "bare.jsonl", "{\"id\":\"keep\",\"answer\":\"x\"}");
    let text = fails(&bare, &bare);
    assert!(
        text.contains("bare.jsonl:1: record \"keep\": missing key `prediction`; it has answer"),
        "{text}"
    );
    let array =
        write(folder.path(), "a.json", "[{\"question_id\":1,\"PA_question\":\"q\",\"predictions\":\"p\"}]");
    let text = fails(&array, &array);
    assert!(
        text.contains("a.json:1: element 0 (from 0): missing key `PA_answer`; it has PA_question"),
        "{text}"
    );
    let twice = "[{\"question_id\":1,\"PA_question\":\"q\",\"PA_answer\":\"a\",\"predictions\":\"p\"}";
    let twice = write(folder.path(), "b.json", &format!("{twice},\n{}]", &twice[1..]));
    let text = fails(&twice, &twice);
    assert!(text.contains("b.json: question_id \"1\" is there twice (element 1)"), "{text}");
}

#[test]
fn unreadable_pictures_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let line =
        "{\"id\":\"a\",\"image\":\"x\",\"question\":\"q\",\"answer\":\"a\",\"rejected\":\"unreadable\"}\n";
    let both = write(folder.path(), "both.jsonl", line);
    let counts = select::run(&both, &both, Rule::Contains, Outputs::default()).unwrap();
    assert_eq!((counts.records, counts.kept, counts.rejected["unreadable"]), (1, 0, 1));
}

#[test]
fn the_margin_decides_by_log_probabilities() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, rows: &[(&str, &str, Option<f64>)]| {
        let line = |(id, prediction, logprob): &(&str, &str, Option<f64>)| {
            let mut value =
                serde_json::json!({"id": id, "question": "?", "answer": "red", "prediction": prediction});
            if let Some(logprob) = logprob {
                value["logprob"] = serde_json::json!(logprob);
            }
            format!("{value}\n")
        };
        let path = folder.path().join(name);
        fs::write(&path, rows.iter().map(line).collect::<String>()).unwrap();
        path
    };
    // Far apart; both right and near each other; at the margin; the teacher wrong, but surer; nobody right.
    let teacher = file(
        "teacher.jsonl",
        &[
            ("a", "red", Some(-0.25)),
            ("b", "red", Some(-0.5)),
            ("c", "red", Some(-1.0)),
            ("d", "blue", Some(-1.0)),
            ("e", "blue", Some(-2.0)),
        ],
    );
    let student = file(
        "student.jsonl",
        &[
            ("a", "red", Some(-3.0)),
            ("b", "red", Some(-0.75)),
            ("c", "blue", Some(-1.5)),
            ("d", "green", Some(-1.75)),
            ("e", "green", Some(-1.0)),
        ],
    );
    let (out, rehearsal) = (folder.path().join("parity.jsonl"), folder.path().join("rehearsal.jsonl"));
    let outputs = Outputs { parity: Some(&out), rehearsal: Some(&rehearsal), rejected: None };
    let criterion = select::Criterion { rule: Rule::Margin, margin: 0.5 };
    let counts = select::run(&teacher, &student, criterion, outputs).unwrap();
    assert_eq!((counts.kept, counts.rehearsal, counts.rejected["below_margin"]), (2, 1, 2));
    let kept = records::read(&out).unwrap();
    assert_eq!(kept.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["a", "d"]);
    assert_eq!(kept[0].extra["teacher_logprob"], -0.25);
    assert_eq!(kept[0].extra["student_logprob"], -3.0);
    assert!(!kept[0].extra.contains_key("logprob"));

    let without = file("without.jsonl", &[("a", "red", None)]);
    let one = file("one.jsonl", &[("a", "red", Some(-1.0))]);
    let error = select::run(&one, &without, criterion, Outputs::default()).unwrap_err().to_string();
    assert!(error.contains("without.jsonl:1") && error.contains("logprob"), "{error}");
    // One label that was too long to be a draft does not stop the others.
    let all = file("all.jsonl", &[("a", "red", None), ("b", "red", Some(-0.5))]);
    let other = file("other.jsonl", &[("a", "red", None), ("b", "blue", Some(-2.0))]);
    let counts = select::run(&all, &other, criterion, Outputs::default()).unwrap();
    assert_eq!((counts.kept, counts.rejected["no_logprob"]), (1, 1));
}
