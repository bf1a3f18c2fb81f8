//! Trains the demo's two models from scratch: `cargo run --release --example train_demo_models -- --out DIR`.
//!
//! Every stage starts from the folder that an earlier stage wrote under DIR/stages and is skipped if its own folder is there,
//! so that a stopped run goes on at the stage it was in. DIR/teacher and DIR/student are the results. See docs/demo.md.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use mpa::demo::checkpoint::{self, STUDENT, Size, TEACHER};
use mpa::demo::draw::draw;
use mpa::demo::lessons::{Lesson, student_knows};
use mpa::demo::questions::{Skill, random_question};
use mpa::demo::scene::{Purpose, Scene, Style, generator};
use mpa::error::{Error, Result};
use mpa::models::generate::Request;
use mpa::models::prompt::{Content, Message};
use mpa::models::vlm::Vlm;
use mpa::ops::sample::Sampling;
use mpa::train::fit::{Picture, Sample, Tower, TrainOptions, Trainable, Trainer};

const SEED: u64 = 16633;
const BOTH: &[Style] = &[Style::Light, Style::Dark];

#[derive(Parser)]
struct Args {
    /// Folder for the stages and the two models.
    #[arg(long)]
    out: PathBuf,
    /// Stop after the stage of this name.
    #[arg(long)]
    until: Option<String>,
    /// Only measure the model in this folder.
    #[arg(long)]
    measure: Option<PathBuf>,
}

/// One leg of the way.
struct Stage {
    name: &'static str,
    /// The stage whose model it starts from; none: fresh weights.
    from: Option<&'static str>,
    size: Size,
    lesson: Lesson,
    steps: usize,
    lr: f64,
}

fn anything(_: Skill) -> bool {
    true
}

/// From narrow to broad: both models first learn to read pictures aloud, which tells them at every token what they overlooked.
fn stages() -> Vec<Stage> {
    let read = Lesson {
        kinds: [3, 1, 1],
        styles: BOTH,
        pictures: 32,
        exercises: 1,
        read: 1.0,
        annotate: 0.0,
        asked: anything,
    };
    let student = Lesson { pictures: 16, exercises: 6, read: 0.1, asked: student_knows, ..read };
    let teacher = Lesson { asked: anything, ..student };
    let annotate = Lesson { annotate: 0.3, ..teacher };
    let stage = |name, from, size, lesson, steps, lr| Stage { name, from, size, lesson, steps, lr };
    vec![
        stage("read", None, STUDENT, read, 900, 3e-3),
        stage("student", Some("read"), STUDENT, student, 1200, 2e-3),
        stage("teacher-ask", Some("read"), TEACHER, teacher, 1200, 2e-3),
        stage("teacher", Some("teacher-ask"), TEACHER, annotate, 800, 1.5e-3),
    ]
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(folder) = &args.measure {
        return measure(folder);
    }
    let folder = |name: &str| args.out.join("stages").join(name);
    for (number, stage) in stages().iter().enumerate() {
        let out = folder(stage.name);
        if !out.join("done").exists() {
            let start = out.join("start");
            let weights = match stage.from {
                None => checkpoint::fresh(stage.size, SEED)?,
                Some(from) => {
                    checkpoint::grow(&checkpoint::read(&folder(from))?, stage.size, SEED + number as u64)?
                }
            };
            checkpoint::write(&start, stage.size, &weights)?;
            train(stage, number as u64, &start, &out)?;
            measure(&out)?;
            std::fs::write(out.join("done"), "").map_err(|e| Error::io(&out, e))?;
        }
        if args.until.as_deref() == Some(stage.name) {
            return Ok(());
        }
    }
    for (name, size) in [("student", STUDENT), ("teacher", TEACHER)] {
        checkpoint::write(&args.out.join(name), size, &checkpoint::read(&folder(name))?)?;
    }
    Ok(())
}

/// Runs a stage from the folder `start` and writes the model to `out`.
fn train(stage: &Stage, number: u64, start: &Path, out: &Path) -> Result<()> {
    let vlm = Vlm::load(&start.to_string_lossy(), None)?;
    let towers = Trainable::Full(vec![Tower::Vision, Tower::Connector, Tower::Text]);
    let options = TrainOptions { beta2: 0.98, weight_decay: 0.01, ..TrainOptions::default() };
    let mut trainer = Trainer::new(vlm, towers, options)?;
    let begun = Instant::now();
    let mut mean = 0.0;
    for step in 0..stage.steps {
        let report = trainer.step(&samples(&stage.lesson, number << 32 | step as u64), rate(stage, step))?;
        mean += report.loss / 50.0;
        if step % 50 == 49 {
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "{} {:5} loss {mean:.4} norm {:.2} {seconds:.0} s",
                stage.name,
                step + 1,
                report.grad_norm
            );
            mean = 0.0;
        }
    }
    trainer.save(out)
}

/// Rises over the first 100 steps, falls as a cosine to a twentieth.
fn rate(stage: &Stage, step: usize) -> f64 {
    let rise = ((step + 1) as f64 / 100.0).min(1.0);
    let done = step as f64 / stage.steps as f64;
    stage.lr * rise * (0.05 + 0.475 * (1.0 + (std::f64::consts::PI * done).cos()))
}

/// The samples of a step; those on one picture share it.
fn samples(lesson: &Lesson, index: u64) -> Vec<Sample> {
    let mut rng = generator(Purpose::Recipe, SEED, index);
    let mut all = Vec::new();
    for _ in 0..lesson.pictures {
        let (scene, exercises) = lesson.draw(&mut rng);
        let picture = Arc::new(draw(&scene));
        all.extend(exercises.into_iter().map(|exercise| Sample {
            id: exercise.prompt.clone(),
            images: vec![Picture::Pixels(Arc::clone(&picture))],
            prompt: exercise.prompt,
            answer: exercise.answer,
        }));
    }
    all
}

/// Prints the accuracy on 400 held-out pictures, by skill and style.
fn measure(folder: &Path) -> Result<()> {
    let vlm = Vlm::load(&folder.to_string_lossy(), None)?;
    let mut requests = Vec::new();
    let mut asked = Vec::new();
    for index in 0..400 {
        let mut rng = generator(Purpose::HeldOut, SEED, index);
        let scene = Scene::random(&mut rng);
        let picture = Arc::new(draw(&scene));
        for _ in 0..4 {
            let Some(question) = random_question(&scene, Skill::of(scene.kind()), &mut rng) else { continue };
            requests.push(request(&picture, &question.text));
            asked.push((question, scene.style));
        }
    }
    let mut cells: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (batch, asked) in requests.chunks(64).zip(asked.chunks(64)) {
        for (completions, (question, style)) in vlm.generate(batch)?.iter().zip(asked) {
            let right = completions.first().is_some_and(|c| c.text.trim() == question.answer);
            for cell in [format!("{:?} {style:?}", question.skill), "all".into()] {
                let (hits, all) = cells.entry(cell).or_default();
                *hits += usize::from(right);
                *all += 1;
            }
        }
    }
    for (cell, (hits, all)) in cells {
        println!("{cell:20} {:.3} of {all}", hits as f64 / all as f64);
    }
    Ok(())
}

fn request(picture: &Arc<mpa::models::image::Rgb>, question: &str) -> Request {
    Request {
        messages: vec![Message::new("user", vec![Content::Image, Content::Text(question.to_string())])],
        images: vec![Arc::clone(picture)],
        tiles: vec![],
        max_new_tokens: 4,
        sampling: Sampling { temperature: 0.0, top_p: 1.0 },
        samples: 1,
        seed: 0,
        draft: None,
    }
}
