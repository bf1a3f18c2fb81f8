//! The demo's pictures, questions and vocabulary agree with each other; its models load; a small demo runs twice to the same bytes.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mpa::demo::checkpoint::{self, STUDENT, TEACHER};
use mpa::demo::draw::draw;
use mpa::demo::inputs::{self, Plan};
use mpa::demo::lessons::student_knows;
use mpa::demo::questions::{Skill, answer, questions, random_question, reading};
use mpa::demo::scene::{Content, Kind, MAX_VALUE, Purpose, Scene, Style, generator};
use mpa::demo::vocabulary::{self, ANNOTATE, READ};
use mpa::models::prompt::{self, Message, Placeholders, Prompter};
use mpa::models::vlm::Vlm;
use mpa::mpa::engine::Native;
use mpa::mpa::progress::Progress;
use mpa::mpa::run;
use mpa::train::fit::{LoraOptions, Picture, Sample, TrainOptions, Trainable, Trainer};

fn scenes(count: u64) -> Vec<Scene> {
    (0..count).map(|index| Scene::random(&mut generator(Purpose::Unlabelled, 7, index))).collect()
}

#[test]
fn scenes_are_what_they_promise() {
    let mut kinds = HashMap::new();
    for scene in scenes(4000) {
        *kinds.entry((scene.kind(), scene.style)).or_insert(0) += 1;
        let count = match &scene.content {
            Content::Sign { row, .. } => {
                assert!((1..=2).contains(row));
                continue;
            }
            Content::Chart(bars) => {
                let bars: Vec<_> = bars.iter().flatten().collect();
                for (i, bar) in bars.iter().enumerate() {
                    assert!((1..=MAX_VALUE).contains(&bar.value));
                    assert!(
                        bars[..i].iter().all(|b| b.value != bar.value && b.color != bar.color),
                        "{bars:?}"
                    );
                }
                bars.len()
            }
            Content::Shapes(shapes) => {
                let shapes: Vec<_> = shapes.iter().flatten().collect();
                for (i, shape) in shapes.iter().enumerate() {
                    assert!(shapes[..i].iter().all(|s| s.0 != shape.0 && s.1 != shape.1), "{shapes:?}");
                }
                shapes.len()
            }
        };
        assert!((2..=4).contains(&count));
    }
    for kind in [Kind::Chart, Kind::Sign, Kind::Shapes] {
        for style in [Style::Light, Style::Dark] {
            let expected = if kind == Kind::Chart { 1200.0 } else { 400.0 };
            let got = f64::from(kinds[&(kind, style)]);
            // Five standard deviations of a binomial count.
            assert!((got - expected).abs() < 5.0 * f64::sqrt(expected), "{kind:?} {style:?}: {got}");
        }
    }
}

#[test]
fn streams_depend_on_purpose_seed_and_number() {
    let scene = |purpose, seed, index| Scene::random(&mut generator(purpose, seed, index));
    let same = |a: &dyn Fn(u64) -> Scene, b: &dyn Fn(u64) -> Scene| (0..100).all(|i| a(i) == b(i));
    let base = |i| scene(Purpose::Unlabelled, 1, i);
    assert!(same(&base, &base));
    assert!(!same(&base, &|i| scene(Purpose::HeldOut, 1, i)));
    assert!(!same(&base, &|i| scene(Purpose::Unlabelled, 2, i)));
    assert!(!same(&base, &|i| scene(Purpose::Unlabelled, 1, i + 1)));
}

#[test]
fn different_scenes_look_different() {
    let mut seen: HashMap<Vec<u8>, Scene> = HashMap::new();
    for scene in scenes(4000) {
        let picture = draw(&scene);
        assert_eq!((picture.width, picture.height, picture.data.len()), (64, 64, 64 * 64 * 3));
        if let Some(other) = seen.insert(picture.data, scene.clone()) {
            assert_eq!(other, scene);
        }
    }
}

#[test]
fn a_bar_is_as_high_as_its_value() {
    for scene in scenes(500) {
        let Content::Chart(bars) = &scene.content else { continue };
        let picture = draw(&scene);
        let pixel = |x: usize, y: usize| &picture.data[(y * 64 + x) * 3..][..3];
        let ground = pixel(0, 63);
        for (slot, bar) in bars.iter().enumerate() {
            // The bar's left edge; gridlines are on the first row of a unit.
            let filled = (0..7).filter(|unit| pixel(slot * 16 + 3, unit * 8 + 4) != ground).count();
            assert_eq!(filled, bar.map_or(0, |b| usize::from(b.value)), "{scene:?}");
        }
    }
}

#[test]
fn every_question_has_one_answer_that_is_found_again() {
    for scene in scenes(1000) {
        let all = questions(&scene);
        for question in &all {
            assert_eq!(answer(&scene, &question.text).as_ref(), Some(&question.answer));
            assert_eq!(all.iter().filter(|q| q.text == question.text).count(), 1, "{}", question.text);
            assert!(Skill::of(scene.kind()).contains(&question.skill));
            let careless = format!("  {} ", question.text.trim_end_matches('?').to_uppercase());
            assert_eq!(answer(&scene, &careless).as_ref(), Some(&question.answer));
        }
        assert_eq!(answer(&scene, "how old is the red bar?"), None);
        assert_eq!(answer(&scene, ""), None);
    }
}

#[test]
fn answers_are_right() {
    let find = |bars: &[(usize, &str, u8)]| {
        scenes(200_000).into_iter().find(|scene| match &scene.content {
            Content::Chart(slots) => {
                slots.iter().flatten().count() == bars.len()
                    && bars.iter().all(|&(slot, color, value)| {
                        slots[slot].is_some_and(|b| b.color.name() == color && b.value == value)
                    })
            }
            _ => false,
        })
    };
    let scene = find(&[(0, "green", 5), (3, "red", 2)]).expect("a chart of two bars");
    let expected = [
        ("how high is the red bar?", "2"),
        ("which bar is the highest?", "green"),
        ("which bar is the lowest?", "red"),
        ("how high is the highest bar?", "5"),
        ("how high is the lowest bar?", "2"),
        ("which bar is the first?", "green"),
        ("which bar is the last?", "red"),
        ("how many bars are there?", "2"),
    ];
    for (question, right) in expected {
        assert_eq!(answer(&scene, question).as_deref(), Some(right), "{question}");
    }
    assert_eq!(answer(&scene, "how high is the blue bar?"), None);
    assert_eq!(reading(&scene), "green 5 red 2");
}

#[test]
fn random_questions_keep_to_the_skills() {
    let mut rng = generator(Purpose::Recipe, 1, 0);
    for scene in scenes(200) {
        for skill in Skill::of(scene.kind()) {
            let question = random_question(&scene, &[*skill], &mut rng).expect("every skill of the kind");
            assert_eq!(question.skill, *skill);
        }
        assert_eq!(random_question(&scene, &[], &mut rng), None);
    }
}

#[test]
fn the_student_knows_and_lacks_something_of_every_kind() {
    for kind in [Kind::Chart, Kind::Sign, Kind::Shapes] {
        let known = Skill::of(kind).iter().filter(|s| student_knows(**s)).count();
        assert!((1..Skill::of(kind).len()).contains(&known), "{kind:?}");
    }
}

/// The two folders out of the binary.
fn models() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    inputs::write_models(folder.path()).expect("models");
    folder
}

#[test]
fn the_vocabulary_covers_all_that_is_said() {
    assert!(vocabulary::tokens().len() < 100);
    let folder = models();
    let prompter = Prompter::read(&folder.path().join("student"), Placeholders::Tiles(16))
        .expect("tokenizer and template");
    let check = |prompt: &str, reply: &str| {
        let text = |text: &str| prompt::Content::Text(text.to_string());
        let messages = [
            Message::new("user", vec![prompt::Content::Image, text(prompt)]),
            Message::new("assistant", vec![text(reply)]),
        ];
        let said = prompter.render(&messages, false).expect("render");
        let said = prompter.expand(&said, &[(0, 0)]).expect("expand");
        let ids = prompter.encode(&said, true).expect("encode");
        let said = said.trim_end();
        let ids = &ids[..ids.len() - 1];
        assert!(!ids.contains(&0), "{said}");
        assert_eq!(prompter.decode(ids, true).expect("decode"), said);
        assert!(ids.len() <= 56, "{} tokens: {said}", ids.len());
    };
    for scene in scenes(1000) {
        check(READ, &reading(&scene));
        for question in questions(&scene) {
            check(&question.text, &question.answer);
            check(ANNOTATE, &format!("Question: {} Answer: {}", question.text, question.answer));
        }
    }
}

#[test]
fn the_embedded_models_load_and_are_small() {
    let folder = models();
    let mut bytes = 0;
    for (name, size) in [("teacher", TEACHER), ("student", STUDENT)] {
        let model = folder.path().join(name);
        Vlm::load(model.to_str().expect("UTF-8"), None).expect(name);
        bytes += std::fs::metadata(model.join("model.safetensors")).expect("weights").len();
        // What the recipe writes today is what is embedded.
        let again = folder.path().join("again");
        checkpoint::write(&again, size, &checkpoint::read(&model).expect("weights")).expect("written");
        for file in std::fs::read_dir(&model).expect("files") {
            let file = file.expect("file").file_name();
            let (ours, theirs) = (std::fs::read(again.join(&file)), std::fs::read(model.join(&file)));
            assert!(ours.expect("written") == theirs.expect("embedded"), "{name}/{file:?}");
        }
    }
    assert!(bytes < 15 << 20, "{bytes} bytes");
}

/// Mean loss of the model in `folder` on a few exercises.
fn loss(folder: &Path) -> f64 {
    let mut rng = generator(Purpose::Recipe, 2, 0);
    let samples: Vec<Sample> = scenes(8)
        .iter()
        .filter_map(|scene| {
            let question = random_question(scene, Skill::of(scene.kind()), &mut rng)?;
            let images = vec![Picture::Pixels(Arc::new(draw(scene)))];
            let id = question.text.clone();
            Some(Sample { id, images, prompt: question.text, answer: question.answer })
        })
        .collect();
    let vlm = Vlm::load(folder.to_str().expect("UTF-8"), None).expect("load");
    let options = TrainOptions::default();
    let mut trainer = Trainer::new(vlm, Trainable::Lora(LoraOptions::default()), options).expect("trainer");
    trainer.step(&samples, 1e-3).expect("step").loss
}

#[test]
fn a_grown_model_computes_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (small, large) = (folder.path().join("small"), folder.path().join("large"));
    let weights = checkpoint::fresh(STUDENT, 5).expect("fresh");
    checkpoint::write(&small, STUDENT, &weights).expect("write");
    let grown = checkpoint::grow(&weights, TEACHER, 6).expect("grow");
    checkpoint::write(&large, TEACHER, &grown).expect("write");
    let (a, b) = (loss(&small), loss(&large));
    // Exact zeros are added; only the order of sums over wider MLPs may differ.
    assert!((a - b).abs() < 1e-5, "{a} {b}");
    assert!(checkpoint::grow(&grown, STUDENT, 6).is_err(), "a model does not shrink");
}

const SMALL: Plan = Plan { pictures: 24, pairs: 2, held_out: 6, questions: 2, steps: 3 };

/// Relative path -> bytes of all files that are not behind a link, without the times.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).expect("folder") {
            let entry = entry.expect("entry");
            let kind = entry.file_type().expect("type");
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() && entry.file_name() != "times.json" {
                let name = entry.path().strip_prefix(folder).expect("inside").to_path_buf();
                all.insert(name, std::fs::read(entry.path()).expect("file"));
            }
        }
    }
    all
}

#[test]
fn a_small_demo_runs_and_repeats_to_the_same_bytes() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| home.path().join(name);
    let quiet = Progress::silent();
    let report = mpa::demo::run(&Native::cpu(), Some(&path("one")), 3, SMALL, &quiet).expect("demo");
    assert_eq!((report.pictures, report.steps), (24, 3));
    assert!(report.pseudo_labels > 24 && report.kept > 0 && report.kept < report.pseudo_labels, "{report:?}");
    assert!(report.pseudo_accuracy > 0.5 && report.teacher > report.student, "{report:?}");
    assert!(report.text().contains("parity_only"));

    let first = files(&path("one"));
    let rest = |all: &BTreeMap<PathBuf, Vec<u8>>| -> BTreeMap<PathBuf, Vec<u8>> {
        all.iter()
            .filter(|(name, _)| !name.starts_with("inputs"))
            .map(|(n, b)| (n.clone(), b.clone()))
            .collect()
    };
    mpa::demo::run(&Native::cpu(), Some(&path("two")), 3, SMALL, &quiet).expect("demo");
    same(&first, &files(&path("two")));
    run::run(&Native::cpu(), &path("one").join("config.toml"), Some(&path("three")), &quiet).expect("run");
    same(&rest(&first), &rest(&files(&path("three"))));

    // Started again it finds everything done, whatever became of its times; another seed is refused.
    std::fs::write(path("one").join("times.json"), "{").expect("times");
    mpa::demo::run(&Native::cpu(), Some(&path("one")), 3, SMALL, &quiet).expect("again");
    same(&first, &files(&path("one")));
    let refused =
        mpa::demo::run(&Native::cpu(), Some(&path("one")), 4, SMALL, &quiet).expect_err("another seed");
    assert_eq!(refused.exit_code(), 2);
}

fn same(a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        assert!(*bytes == b[name], "{} differs", name.display());
    }
}
