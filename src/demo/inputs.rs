//! The inputs of the demo's run: the two models out of this binary, pictures drawn with the seed, and the settings.
//!
//! ```text
//! DIR/inputs/teacher, student    checkpoint folders
//! DIR/inputs/images              unlabelled pictures
//! DIR/inputs/eval                held-out pictures and questions.jsonl with the true answers
//! DIR/config.toml                written last: where it is, the rest is complete
//! ```
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rayon::prelude::*;

use crate::data::files;
use crate::data::records::Record;
use crate::demo::draw::{draw, write_png};
use crate::demo::questions::{Skill, random_question};
use crate::demo::scene::{Purpose, Scene, generator};
use crate::demo::vocabulary::ANNOTATE;
use crate::error::{Error, Result};
use crate::mpa::config::{Annotate, Ask, Config, Evaluate, Models, Select};
use crate::mpa::level::{Arm, Settings};
use crate::mpa::select::Rule;
use crate::mpa::source::Source;
use crate::ops::kv_cache::PageType;
use crate::train::fit::Schedule;

/// How much the demo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Unlabelled pictures, and pairs that the teacher writes about each.
    pub pictures: usize,
    pub pairs: usize,
    /// Held-out pictures, and questions about each.
    pub held_out: usize,
    pub questions: usize,
    /// Optimizer steps of every arm.
    pub steps: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { pictures: 2000, pairs: 5, held_out: 400, questions: 4, steps: 400 }
    }
}

macro_rules! folder {
    ($name:literal) => {
        [
            ("config.json", include_bytes!(concat!("../../assets/demo/", $name, "/config.json")).as_slice()),
            (
                "generation_config.json",
                include_bytes!(concat!("../../assets/demo/", $name, "/generation_config.json")),
            ),
            (
                "preprocessor_config.json",
                include_bytes!(concat!("../../assets/demo/", $name, "/preprocessor_config.json")),
            ),
            (
                "processor_config.json",
                include_bytes!(concat!("../../assets/demo/", $name, "/processor_config.json")),
            ),
            ("tokenizer.json", include_bytes!(concat!("../../assets/demo/", $name, "/tokenizer.json"))),
            (
                "tokenizer_config.json",
                include_bytes!(concat!("../../assets/demo/", $name, "/tokenizer_config.json")),
            ),
            (
                "chat_template.jinja",
                include_bytes!(concat!("../../assets/demo/", $name, "/chat_template.jinja")),
            ),
            ("model.safetensors", include_bytes!(concat!("../../assets/demo/", $name, "/model.safetensors"))),
        ]
    };
}

/// The files of the two checkpoint folders, as examples/train_demo_models.rs wrote them.
const MODELS: [(&str, Files); 2] = [("teacher", folder!("teacher")), ("student", folder!("student"))];

/// Names and contents.
type Files = [(&'static str, &'static [u8]); 8];

/// Writes the two checkpoint folders into `folder`.
pub fn write_models(folder: &Path) -> Result<()> {
    for (name, files) in MODELS {
        let model = make(&folder.join(name))?;
        for (file, bytes) in files {
            write(&model.join(file), bytes)?;
        }
    }
    Ok(())
}

/// Is in a folder that is being prepared, by which the next start knows what a killed one left.
const UNFINISHED: &str = ".unfinished-demo";

/// Prepares `folder`, or finds it prepared for the same demo. In a folder with anything else nothing is written.
pub fn prepare(folder: &Path, seed: u64, plan: Plan) -> Result<()> {
    let (path, text) = (folder.join("config.toml"), config(seed, plan).to_toml()?);
    let marker = folder.join(UNFINISHED);
    if path.exists() {
        let there = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        return if there == text {
            unmark(&marker)
        } else {
            Err(Error::input(&path, "is not that of this demo (another seed?): take another --out"))
        };
    }
    let filled = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if filled && !marker.exists() {
        return Err(Error::input(folder, "is not empty, and no demo is there: take another --out"));
    }
    make(folder)?;
    write(&marker, b"The inputs of this demo are not all there yet.\n")?;
    let inputs = make(&folder.join("inputs"))?;
    write_models(&inputs)?;
    let images = make(&inputs.join("images"))?;
    (0..plan.pictures).into_par_iter().try_for_each(|number| {
        write_png(&images.join(picture_name(number)), &draw(&unlabelled(seed, number)))
    })?;
    held_out(&make(&inputs.join("eval"))?, seed, plan)?;
    files::write(&path, text.as_bytes())?;
    unmark(&marker)
}

fn unmark(marker: &Path) -> Result<()> {
    match fs::remove_file(marker) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(marker, e)),
        _ => Ok(()),
    }
}

/// What unlabelled picture `number` shows: for the demo's own report, never for the loop.
pub fn unlabelled(seed: u64, number: usize) -> Scene {
    Scene::random(&mut generator(Purpose::Unlabelled, seed, number as u64))
}

/// Writes a true question and answer about each unlabelled picture: for a supervised reference, never for the loop.
pub fn write_labels(path: &Path, seed: u64, plan: Plan) -> Result<()> {
    let mut lines = Vec::new();
    for number in 0..plan.pictures {
        let mut rng = generator(Purpose::Unlabelled, seed, number as u64);
        let scene = Scene::random(&mut rng);
        let Some(question) = random_question(&scene, Skill::of(scene.kind()), &mut rng) else { continue };
        let record = Record {
            id: format!("{number:05}"),
            image: Some(format!("images/{}", picture_name(number))),
            question: Some(question.text),
            answer: Some(question.answer),
            ..Record::default()
        };
        lines.extend(record.to_line()?);
    }
    files::write(path, &lines)
}

pub fn picture_name(number: usize) -> String {
    format!("{number:05}.png")
}

fn held_out(folder: &Path, seed: u64, plan: Plan) -> Result<()> {
    let mut lines = Vec::new();
    for number in 0..plan.held_out {
        let mut rng = generator(Purpose::HeldOut, seed, number as u64);
        let scene = Scene::random(&mut rng);
        write_png(&folder.join(picture_name(number)), &draw(&scene))?;
        for asked in 0..plan.questions {
            let Some(question) = random_question(&scene, Skill::of(scene.kind()), &mut rng) else { continue };
            let record = Record {
                id: format!("{number:05}#{asked}"),
                image: Some(picture_name(number)),
                question: Some(question.text),
                answer: Some(question.answer),
                ..Record::default()
            };
            lines.extend(record.to_line()?);
        }
    }
    write(&folder.join("questions.jsonl"), &lines)
}

/// Complete, so that the run folder's resolved config is the same text.
fn config(seed: u64, plan: Plan) -> Config {
    let ask = Ask { prompt: "{question}".into(), max_new_tokens: 4, batch: 128 };
    Config {
        seed,
        out: None,
        models: Models {
            teacher: "inputs/teacher".into(),
            teacher_int8: None,
            teacher_kv_cache: PageType::Float,
            student: "inputs/student".into(),
            min_pixels: None,
            max_pixels: None,
        },
        annotate: Annotate {
            images: Source::Path("inputs/images".into()),
            task: None,
            prompt: Some(ANNOTATE.into()),
            samples: plan.pairs,
            temperature: 1.0,
            top_p: 1.0,
            max_new_tokens: 16,
            batch: 64,
        },
        evaluate: Some(Evaluate {
            questions: Source::Path("inputs/eval/questions.jsonl".into()),
            prompt: Some(ask.prompt.clone()),
            max_new_tokens: Some(ask.max_new_tokens),
            batch: Some(ask.batch),
        }),
        predict: ask,
        select: Select { rule: Rule::Exact, margin: 0.0 },
        level: Settings {
            arms: vec![Arm::Leveled, Arm::ParityOnly, Arm::AllPseudo, Arm::RandomSubset],
            rehearsal: 0.5,
            rank: 16,
            alpha: 32.0,
            lr: 2e-3,
            schedule: Schedule::Cosine,
            steps: Some(plan.steps),
            batch: 32,
            ..Settings::default()
        },
    }
}

fn make(folder: &Path) -> Result<std::path::PathBuf> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    Ok(folder.to_path_buf())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::io(path, e))
}
