//! A run that is killed at any moment and started again ends with the same bytes; so does one that is repeated elsewhere.
mod fake;
mod pictures;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use fake::{Fake, input, plant, tree};
use mpa::data::records;
use mpa::error::{Error, Result};
use mpa::mpa::progress::Progress;
use mpa::mpa::run::{Outcome, run};

fn go(engine: &Fake, config: &Path, out: Option<&Path>) -> Result<Outcome> {
    run(engine, config, out, &Progress::silent())
}

/// A folder in memory where the system has one: thousands of runs wait for the disk otherwise.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Files in the order in which a run ends them, as `Run` has it.
const ORDER: [&str; 15] = [
    "annotate.jsonl",
    "teacher.jsonl",
    "evaluate/teacher/predictions.jsonl",
    "evaluate/teacher/scores.json",
    "student.jsonl",
    "evaluate/student/predictions.jsonl",
    "evaluate/student/scores.json",
    "parity.jsonl",
    "rehearsal.jsonl",
    "rejected.jsonl",
    "select.json",
    "level/leveled/adapter_model.safetensors",
    "evaluate/leveled/predictions.jsonl",
    "summary.json",
    "report.html",
];

fn different(got: &BTreeMap<String, Vec<u8>>, want: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names = got.keys().chain(want.keys());
    let mut names: Vec<String> = names.filter(|name| got.get(*name) != want.get(*name)).cloned().collect();
    names.dedup();
    names
}

#[test]
fn an_undisturbed_run_does_what_its_config_says() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let outcome = go(&Fake::default(), &config, None).unwrap();
    assert_eq!(outcome.folder, folder.path().join("small"));
    let summary = &outcome.summary;
    // Three pictures with four samples, and one that cannot be read.
    assert_eq!(summary.pseudo_labels, 13);
    assert_eq!(summary.rejected["unreadable"], 1);
    let good = 13 - summary.rejected.values().sum::<usize>();
    let select = &summary.select;
    assert_eq!(select.records, good);
    assert_eq!(select.kept + select.rejected.values().sum::<usize>(), good);
    assert!(select.kept >= 2 && select.rehearsal >= 2, "{select:?}");
    assert_eq!(summary.samples["parity_only"], select.kept);
    assert_eq!(summary.samples["random_subset"], select.kept);
    assert_eq!(summary.samples["all_pseudo"], good);
    let rehearsed = (0.5 * select.kept as f64).round() as usize;
    assert_eq!(summary.samples["leveled"], select.kept + rehearsed.min(select.rehearsal));
    assert_eq!(summary.steps, 7);
    for arm in ["leveled", "parity_only", "all_pseudo", "random_subset"] {
        let adapter = outcome.folder.join(format!("level/{arm}/adapter_model.safetensors"));
        assert!(fs::read_to_string(adapter).unwrap().starts_with("7 steps\n"), "{arm}");
        assert!(summary.scores.contains_key(arm), "{arm}");
    }
    for name in ORDER {
        assert!(outcome.folder.join(name).is_file(), "{name}");
    }
    // Pictures are found from every file that names them.
    for name in ["annotate.jsonl", "parity.jsonl", "evaluate/leveled/predictions.jsonl"] {
        let file = outcome.folder.join(name);
        for record in records::read(&file).unwrap() {
            assert!(record.image_path(&file).unwrap().is_file(), "{name}: {:?}", record.image);
            assert!(record.image.unwrap().contains("inputs/"), "{name}");
        }
    }
    let broken = records::read(&outcome.folder.join("annotate.jsonl")).unwrap();
    let broken = broken.iter().find(|r| r.id == "broken.png").unwrap();
    assert_eq!(broken.rejected.as_deref(), Some("unreadable"));
    assert!(broken.reason.as_ref().unwrap().contains("PNG"), "{:?}", broken.reason);
}

#[test]
fn a_run_that_stops_at_any_byte_goes_on_to_the_same_bytes() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let whole = go(&Fake::default(), &config, None).unwrap().folder;
    let want = tree(&whole);
    let late = |name: &str, at: usize| {
        ORDER[at..].contains(&name) || (at < 12 && name.starts_with("evaluate/leveled"))
    };
    for (at, name) in ORDER.iter().enumerate() {
        let appended = name.ends_with(".jsonl")
            && !matches!(*name, "parity.jsonl" | "rehearsal.jsonl" | "rejected.jsonl");
        let bytes = &want[*name];
        // Every byte of two lines of the first file, where most can go wrong; elsewhere strides that meet every place in a line.
        let close =
            |cut: &usize| if at == 0 { *cut < 250 || cut.is_multiple_of(13) } else { cut.is_multiple_of(37) };
        for cut in (0..=bytes.len()).filter(close).chain([bytes.len() - 1, bytes.len()]) {
            let mut files = want.clone();
            files.retain(|other, _| !late(other, at) && (at > 11 || !other.starts_with("level/")));
            let half = if appended { name.to_string() } else { temporary(name) };
            if !name.starts_with("level/") {
                files.insert(half, bytes[..cut].to_vec());
            }
            let again = folder.path().join("again");
            plant(&again, &files, &whole);
            let other = go(&Fake::default(), &config, Some(&again)).unwrap();
            assert_eq!(different(&tree(&other.folder), &want), Vec::<String>::new(), "{name} cut at {cut}");
            fs::remove_dir_all(&again).unwrap();
        }
    }
}

/// What a file that is written whole is called until it is there.
fn temporary(name: &str) -> String {
    let path = Path::new(name);
    let hidden = format!(".{}.tmp", path.file_name().unwrap().to_str().unwrap());
    path.with_file_name(hidden).to_str().unwrap().to_string()
}

#[test]
fn a_run_whose_model_fails_at_any_request_goes_on_to_the_same_bytes() {
    let folder = scratch();
    let config = input(folder.path(), 3);
    let fake = Fake::default();
    let want = tree(&go(&fake, &config, None).unwrap().folder);
    for die_at in 0..fake.asked.load(SeqCst) {
        let again = folder.path().join("again");
        let dying = Fake { die_at: Some(die_at), ..Fake::default() };
        let error = go(&dying, &config, Some(&again)).unwrap_err();
        assert!(matches!(error, Error::Failure(_)), "{error}");
        let rest = Fake::default();
        go(&rest, &config, Some(&again)).unwrap();
        assert_eq!(different(&tree(&again), &want), Vec::<String>::new(), "failed at request {die_at}");
        // At most one batch is asked again.
        assert!(
            rest.asked.load(SeqCst) + die_at <= fake.asked.load(SeqCst) + 3,
            "{die_at}: {}",
            rest.asked.load(SeqCst)
        );
        fs::remove_dir_all(&again).unwrap();
    }
}

#[test]
fn a_batch_that_does_not_fit_is_halved_and_a_record_that_never_fits_is_named() {
    let folder = scratch();
    let config = input(folder.path(), 4);
    let want = tree(&go(&Fake::default(), &config, None).unwrap().folder);
    for room in [1, 3] {
        let again = folder.path().join("again");
        go(&Fake { room: Some(room), ..Fake::default() }, &config, Some(&again)).unwrap();
        assert_eq!(different(&tree(&again), &want), Vec::<String>::new(), "room for {room}");
        fs::remove_dir_all(&again).unwrap();
    }
    let other = folder.path().join("other");
    let outcome = go(&Fake { too_large: Some("is 2 ?"), ..Fake::default() }, &config, Some(&other)).unwrap();
    let predictions = records::read(&outcome.folder.join("evaluate/student/predictions.jsonl")).unwrap();
    let rejected: Vec<_> = predictions.iter().map(|r| (r.id.as_str(), r.rejected.as_deref())).collect();
    assert_eq!(rejected, [("q0", None), ("q1", None), ("q2", Some("out of memory")), ("q3", None)]);
}

#[test]
fn a_finished_run_loads_no_model() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let first = go(&Fake::default(), &config, None).unwrap();
    let before = tree(&first.folder);
    let second = Fake::default();
    let again = go(&second, &config, None).unwrap();
    assert_eq!((second.loads.load(SeqCst), second.asked.load(SeqCst)), (0, 0));
    assert_eq!(again.summary, first.summary);
    assert_eq!(different(&tree(&first.folder), &before), Vec::<String>::new());
}

#[test]
fn a_repeated_run_gives_the_same_bytes_and_no_file_knows_where_it_is() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let first = go(&Fake::default(), &config, None).unwrap().folder;
    let other = scratch();
    let out = other.path().join("deep/er");
    go(&Fake::default(), &first.join("config.toml"), Some(&out)).unwrap();
    assert_eq!(different(&tree(&out), &tree(&first)), Vec::<String>::new());
    let place = folder.path().to_str().unwrap();
    for (name, bytes) in tree(&first) {
        assert!(!String::from_utf8_lossy(&bytes).contains(place), "{name} holds an absolute path");
    }
    // A run folder's own config goes on in it.
    let idle = Fake::default();
    assert_eq!(go(&idle, &out.join("config.toml"), None).unwrap().folder, out);
    assert_eq!(idle.asked.load(SeqCst), 0);
}

#[test]
fn batches_change_nothing_and_may_be_changed_on_the_way() {
    let folder = scratch();
    let mut want = None;
    for batch in [1, 3, 100] {
        let config = input(folder.path(), batch);
        let out = folder.path().join(format!("out{batch}"));
        go(&Fake::default(), &config, Some(&out)).unwrap();
        let mut files = tree(&out);
        // These say how large the batches were.
        files.retain(|name, _| !name.ends_with(".toml") && name != "report.html");
        assert_eq!(
            different(&files, want.get_or_insert_with(|| files.clone())),
            Vec::<String>::new(),
            "{batch}"
        );
    }
    let config = input(folder.path(), 5);
    go(&Fake::default(), &config, Some(&folder.path().join("out3"))).unwrap();
}

#[test]
fn a_changed_config_is_refused_with_the_key() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let out = go(&Fake::default(), &config, None).unwrap().folder;
    fs::write(&config, fake::text(2).replace("rehearsal = 0.5", "rehearsal = 0.25")).unwrap();
    let error = go(&Fake::default(), &config, None).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.exit_code(), 2);
    assert!(text.contains("`level.rehearsal` is 0.25, but 0.5") && text.contains("small.toml"), "{text}");
    // Edited in the run folder itself.
    let inside = out.join("config.toml");
    let edited = fs::read_to_string(&inside).unwrap().replace("samples = 4", "samples = 5");
    fs::write(&inside, edited).unwrap();
    let text = go(&Fake::default(), &inside, None).unwrap_err().to_string();
    assert!(text.contains("`annotate.samples` is 5, but 4"), "{text}");
    // Another folder of pictures.
    fs::write(&config, fake::text(2).replace("\"pictures\"", "\"pictures/more\"")).unwrap();
    let text = go(&Fake::default(), &config, None).unwrap_err().to_string();
    assert!(text.contains("inputs/images") && text.contains("does not lead to"), "{text}");
}

#[test]
fn settings_of_a_stage_that_has_not_begun_may_be_changed() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let out = folder.path().join("small");
    go(&Fake { die_at: Some(8), ..Fake::default() }, &config, None).unwrap_err();
    assert!(out.join("config.started.toml").exists() && !out.join("level").exists());
    let refused = fake::text(2).replace("samples = 4", "samples = 5");
    fs::write(&config, refused).unwrap();
    let text = go(&Fake::default(), &config, None).unwrap_err().to_string();
    assert!(text.contains("`annotate.samples` is 5, but 4"), "{text}");
    fs::write(&config, fake::text(2).replace("rehearsal = 0.5", "rehearsal = 0.25")).unwrap();
    go(&Fake::default(), &config, None).unwrap();
    let other = folder.path().join("other");
    go(&Fake::default(), &config, Some(&other)).unwrap();
    assert_eq!(different(&tree(&out), &tree(&other)), Vec::<String>::new());
    // Levelling has begun now: what changes no bit of it may still change.
    let free = "rehearsal = 0.25\nrecompute = true\ncheckpoint_every = 7";
    fs::write(&config, fake::text(2).replace("rehearsal = 0.5", free)).unwrap();
    go(&Fake::default(), &config, None).unwrap();
    fs::write(&config, fake::text(2)).unwrap();
    let text = go(&Fake::default(), &config, None).unwrap_err().to_string();
    assert!(text.contains("`level.rehearsal` is 0.5, but 0.25"), "{text}");
}

#[test]
fn a_run_does_not_go_on_with_other_weights_or_types() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let weights = folder.path().join("models/student/model.safetensors");
    fs::write(&weights, "these").unwrap();
    go(&Fake { die_at: Some(8), ..Fake::default() }, &config, None).unwrap_err();
    fs::write(&weights, "those").unwrap();
    let text = go(&Fake::default(), &config, None).unwrap_err().to_string();
    assert!(text.contains("inputs/student: is another model than when this folder was started"), "{text}");
    fs::write(&weights, "these").unwrap();
    let text = go(&Fake { bf16: true, ..Fake::default() }, &config, None).unwrap_err().to_string();
    assert!(text.contains("was started with --dtype default, now it is bf16"), "{text}");
    go(&Fake::default(), &config, None).unwrap();
}

/// Hours before they are needed, and nothing keeps the mistake.
#[test]
fn questions_without_answers_are_told_before_the_teacher_is_asked() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let questions = folder.path().join("benchmark/val.jsonl");
    let good = fs::read_to_string(&questions).unwrap();
    fs::write(&questions, good.replace("answers", "labels")).unwrap();
    let text = go(&Fake::default(), &config, None).unwrap_err().to_string();
    assert!(text.contains("val.jsonl:1: record \"q0\": missing key `answer`"), "{text}");
    assert!(!folder.path().join("small").exists());
    fs::write(&questions, "\n").unwrap();
    let text = go(&Fake::default(), &config, None).unwrap_err().to_string();
    assert!(text.contains("val.jsonl: holds no questions"), "{text}");
    // Another file is taken for as long as none was asked.
    fs::write(&questions, good).unwrap();
    go(&Fake { die_at: Some(2), ..Fake::default() }, &config, None).unwrap_err();
    fs::copy(&questions, folder.path().join("benchmark/other.jsonl")).unwrap();
    fs::write(&config, fake::text(2).replace("val.jsonl", "other.jsonl")).unwrap();
    go(&Fake::default(), &config, None).unwrap();
}

#[test]
fn a_run_folder_may_bring_its_own_inputs_and_config() {
    let folder = scratch();
    let made = scratch();
    input(made.path(), 2);
    fs::create_dir(folder.path().join("inputs")).unwrap();
    for (from, to) in [
        ("models/teacher", "inputs/teacher"),
        ("models/student", "inputs/student"),
        ("pictures", "inputs/images"),
        ("benchmark", "inputs/eval"),
    ] {
        fs::rename(made.path().join(from), folder.path().join(to)).unwrap();
    }
    let lines = fs::read_to_string(folder.path().join("inputs/eval/val.jsonl")).unwrap();
    fs::write(folder.path().join("inputs/eval/val.jsonl"), lines.replace("../pictures", "../images"))
        .unwrap();
    let text = fake::text(2)
        .replace("models/", "inputs/")
        .replace("\"pictures\"", "\"inputs/images\"")
        .replace("benchmark", "inputs/eval");
    let config = folder.path().join("config.toml");
    fs::write(&config, &text).unwrap();
    let outcome = go(&Fake::default(), &config, None).unwrap();
    assert_eq!(outcome.folder, folder.path());
    assert_eq!(fs::read_to_string(&config).unwrap(), text, "the user's own config is left alone");
    let other = made.path().join("other");
    go(&Fake::default(), &config, Some(&other)).unwrap();
    let (mut got, mut want) = (tree(&other), tree(folder.path()));
    for files in [&mut got, &mut want] {
        files.retain(|name, _| !name.starts_with("inputs/") && name != "config.toml");
    }
    assert_eq!(different(&got, &want), Vec::<String>::new());
    assert_eq!(fs::read(other.join("config.toml")).unwrap(), want["config.started.toml"]);
}

#[test]
fn output_of_other_input_is_refused_with_file_and_line() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let out = go(&Fake::default(), &config, None).unwrap().folder;
    let file = out.join("annotate.jsonl");
    let text = fs::read_to_string(&file).unwrap().replacen("a.png#1", "z.png#1", 1);
    fs::write(&file, text).unwrap();
    let error = go(&Fake::default(), &config, None).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains("annotate.jsonl:2: has id \"z.png#1\" where \"a.png#1\" belongs"), "{text}");
}

/// The teacher answers about a picture while it annotates others: its two files are behind each other in every way.
#[test]
fn annotations_and_the_teachers_answers_catch_up_with_each_other() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let fake = Fake::default();
    let whole = go(&fake, &config, None).unwrap().folder;
    let want = tree(&whole);
    // It saw a picture once: the very same one comes with annotation and question.
    let seen = fake.seen.lock().unwrap();
    let annotated: Vec<_> = seen.iter().filter(|(text, _)| !text.starts_with("Q: ")).collect();
    assert_eq!(annotated.len(), 3);
    let drawn = |text: &str| text.starts_with("Q: which number");
    let answers = want["teacher.jsonl"].split(|&b| b == b'\n').count() - 1;
    let asked: Vec<_> = seen.iter().filter(|(text, _)| drawn(text)).take(answers).collect();
    for (text, picture) in asked {
        assert!(annotated.iter().any(|(_, p)| Arc::ptr_eq(p, picture)), "{text}");
    }
    let lines = |name: &str| -> Vec<Vec<u8>> {
        want[name].split_inclusive(|&b| b == b'\n').map(<[u8]>::to_vec).collect()
    };
    let (annotations, answers) = (lines("annotate.jsonl"), lines("teacher.jsonl"));
    let is_good = |line: &&Vec<u8>| !String::from_utf8_lossy(line).contains("\"rejected\"");
    for n in 0..=annotations.len() {
        for m in 0..=annotations[..n].iter().filter(is_good).count() {
            let mut files = want.clone();
            files.retain(|name, _| !ORDER[2..].contains(&&name[..]) && !name.starts_with("level/"));
            files.retain(|name, _| !name.starts_with("evaluate/"));
            files.insert("annotate.jsonl".into(), annotations[..n].concat());
            files.insert("teacher.jsonl".into(), answers[..m].concat());
            let again = folder.path().join("again");
            plant(&again, &files, &whole);
            let other = go(&Fake::default(), &config, Some(&again)).unwrap();
            assert_eq!(
                different(&tree(&other.folder), &want),
                Vec::<String>::new(),
                "{n} lines, {m} answers"
            );
            fs::remove_dir_all(&again).unwrap();
        }
    }
}

#[test]
fn an_empty_parity_set_is_said_after_everything_else_is_done() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    // Teacher and student are the same model, so that nothing is left to level.
    fs::write(&config, fake::text(2).replace("models/student", "models/teacher")).unwrap();
    let exact = fs::read_to_string(&config).unwrap() + "\n[select]\nrule = \"exact\"\n";
    fs::write(&config, exact).unwrap();
    let error = go(&Fake::default(), &config, None).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("the parity set is empty"), "{error}");
    assert!(folder.path().join("small/summary.json").is_file());
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let held = mpa::mpa::folder::Folder::open(&Fake::default(), &config, None).unwrap();
    let error = go(&Fake::default(), &config, None).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(held);
    go(&Fake::default(), &config, None).unwrap();
}
