//! The loop of one cell, as stages that it shares with others.
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::files;
use crate::error::{Error, Result};
use crate::models::hub;
use crate::models::int8::Parts;
use crate::mpa::ablate::grid::{Cell, Source};
use crate::mpa::ablate::pictures::{LIST, WHOLE, draw, keep, list, picture, pictures};
use crate::mpa::ablate::stage::{self, Stages};
use crate::mpa::config::{Config, Int8};
use crate::mpa::engine::{Engine, Job, Lazy, Loading};
use crate::mpa::evaluate::Questions;
use crate::mpa::level::{self, Example};
use crate::mpa::progress::Progress;
use crate::mpa::select::{self, Criterion, Outputs, Rule};
use crate::mpa::{annotate, evaluate, predict, teacher};
use crate::train::fit::Trainable;

/// What a stage of the kind `level` was trained on (trained.json).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Pseudo-labels that were not rejected, and those kept of them; 0 with labels.
    pub pseudo: usize,
    pub parity: usize,
    pub samples: usize,
    pub steps: usize,
}

/// The names of a cell's stages.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub all: Vec<String>,
    /// The last round's levelling.
    pub last: String,
    pub teacher: String,
    pub before: String,
    pub after: String,
}

/// What all cells have in common.
pub struct Context<'a> {
    pub engine: &'a dyn Engine,
    pub progress: &'a Progress,
    pub stages: Stages,
    /// The link through which every input is named, so that no file of a stage holds an absolute path.
    pub inputs: PathBuf,
    /// The most pictures that a cell wants; none if one wants all.
    pub pictures: Option<usize>,
    pub supervised: Option<String>,
}

#[derive(Clone)]
struct Model {
    /// Tells it from others.
    key: Value,
    path: PathBuf,
    adapter: Option<PathBuf>,
    how: Loading,
}

/// What a model's answers to the questions of an annotate stage depend on.
fn asked(config: &Config, model: &Model, pseudo: &str) -> Value {
    let options = config.prediction();
    json!({"model": model.key, "loading": model.how, "questions": pseudo, "options": options})
}

impl Context<'_> {
    /// Does all stages of a cell that are not done.
    pub fn chain(&self, cell: &Cell) -> Result<Chain> {
        let (config, mut chain) = (&cell.config, Chain::default());
        let teacher = self.teacher(config)?;
        let mut student = self.model(config, &config.models.student, None)?;
        chain.teacher = self.evaluate(config, "teacher", &teacher)?;
        chain.before = self.evaluate(config, "student", &student)?;
        chain.all.extend([chain.teacher.clone(), chain.before.clone()]);
        for round in 1..=cell.rounds {
            let (level, leveled) = if cell.source == Source::Supervised {
                self.level(cell, &student, None)?
            } else {
                let pseudo = self.annotate(config, &teacher)?;
                let answers = [
                    self.predict(config, "teacher", &teacher, &pseudo)?,
                    self.predict(config, "student", &student, &pseudo)?,
                ];
                let parity = self.select(cell, &pseudo, &answers)?;
                chain.all.extend([&pseudo, &parity].into_iter().chain(&answers).cloned());
                self.level(cell, &student, Some((&pseudo, &parity)))?
            };
            chain.all.push(level.clone());
            chain.last = level;
            student = leveled;
            if round < cell.rounds && student.adapter.is_some() {
                student = self.merge(&student)?;
                chain.all.push(student.key.as_str().unwrap_or_default().to_string());
            }
        }
        chain.after = self.evaluate(config, "levelled", &student)?;
        chain.all.push(chain.after.clone());
        chain.all.sort();
        chain.all.dedup();
        Ok(chain)
    }

    fn teacher(&self, config: &Config) -> Result<Model> {
        let int8 = config.models.teacher_int8.and_then(Int8::parts);
        let mut teacher = self.model(config, &config.models.teacher, int8)?;
        teacher.how.kv_cache = config.models.teacher_kv_cache;
        Ok(teacher)
    }

    /// A folder or a hub id.
    fn model(&self, config: &Config, name: &str, int8: Option<Parts>) -> Result<Model> {
        let path = match self.inputs.join(name) {
            folder if folder.is_dir() => folder,
            _ => hub::resolve(name)?,
        };
        let how = Loading { int8, pixels: config.models.pixels_of(&path)?, ..Loading::default() };
        let key = match self.engine.dtype() {
            Some(dtype) => json!({"name": name, "dtype": dtype.to_string()}),
            None => json!(name),
        };
        Ok(Model { key, path, adapter: None, how })
    }

    fn lazy(&self, model: &Model) -> Lazy<'_> {
        Lazy::new(self.engine, model.path.clone(), model.adapter.clone(), self.progress).loading(model.how)
    }

    /// The teacher answers its questions while it has the picture at hand; what is left for `predict` is to see that all is there.
    fn annotate(&self, config: &Config, teacher: &Model) -> Result<String> {
        let mut options = config.annotation();
        // The most likely annotation is the same with every seed.
        if options.temperature == 0.0 {
            options.seed = 0;
        }
        let subset = self.pictures.map(|most| json!({"most": most, "seed": config.seed}));
        let images = &config.annotate.images;
        let settings = json!({
            "teacher": teacher.key, "loading": teacher.how, "images": images, "pictures": subset, "options": options,
        });
        self.stages.run("annotate", &settings, |folder| {
            let batch = config.annotate.batch;
            let source = images.pictures(&self.inputs, &folder.join(WHOLE))?;
            let source = match self.pictures {
                None => source,
                Some(most) => list(&source, folder, most, config.seed)?,
            };
            let (out, answerer) = (folder.join("annotate.jsonl"), self.lazy(teacher));
            let answers = asked(config, teacher, &stage::name("annotate", &settings));
            let Some(beside) = self.stages.ahead(&stage::name("predict", &answers), &answers)? else {
                return annotate::run(&source, &options, &answerer, &out, batch, self.progress).map(|_| ());
            };
            let options = (&options, &config.prediction());
            let outs = [&*out, &beside.join("predictions.jsonl")];
            teacher::run(&source, options, &answerer, outs, batch, self.progress)
        })
    }

    fn predict(&self, config: &Config, who: &str, model: &Model, pseudo: &str) -> Result<String> {
        let options = config.prediction();
        self.stages.run("predict", &asked(config, model, pseudo), |folder| {
            let questions = self.stages.folder(pseudo).join("annotate.jsonl");
            let (out, name) = (folder.join("predictions.jsonl"), format!("predict {who}"));
            let batch = config.predict.batch;
            predict::run(&name, &questions, &options, &self.lazy(model), &out, batch, self.progress)
                .map(|_| ())
        })
    }

    fn select(&self, cell: &Cell, pseudo: &str, answers: &[String; 2]) -> Result<String> {
        let (rule, seed) = (cell.config.select.rule, cell.config.seed);
        let margin = if rule == Rule::Margin { cell.config.select.margin } else { 0.0 };
        let pictures = cell.pictures.map(|n| json!({"number": n, "seed": seed}));
        let settings = json!({
            "teacher": answers[0], "student": answers[1], "rule": rule, "margin": margin, "pictures": pictures,
        });
        self.stages.run("select", &settings, |folder| {
            let [teacher, student] = [(0, "teacher"), (1, "student")].map(|(i, who)| {
                (
                    self.stages.folder(&answers[i]).join("predictions.jsonl"),
                    folder.join(format!("{who}.jsonl")),
                )
            });
            let chosen = self.chosen(cell, pseudo)?;
            for (from, to) in [&teacher, &student] {
                keep(from, to, chosen.as_ref(), cell.config.annotate.samples)?;
            }
            let files = ["parity", "rehearsal", "rejected"].map(|name| folder.join(format!("{name}.jsonl")));
            let outputs =
                Outputs { parity: Some(&files[0]), rehearsal: Some(&files[1]), rejected: Some(&files[2]) };
            let counts = select::run(&teacher.1, &student.1, Criterion { rule, margin }, outputs)?;
            files::write_json(&folder.join("select.json"), &counts)
        })
    }

    /// The ids of the cell's pictures; none for all.
    fn chosen(&self, cell: &Cell, pseudo: &str) -> Result<Option<HashSet<String>>> {
        let Some(number) = cell.pictures else { return Ok(None) };
        let listed = [LIST, WHOLE].map(|name| self.stages.folder(pseudo).join(name));
        let all = match listed.iter().find(|file| file.exists()) {
            Some(file) => pictures(file)?,
            None => pictures(&cell.config.annotate.images.pictures(&self.inputs, &listed[1])?)?,
        };
        let all: Vec<String> = all.into_iter().map(|(id, _)| id).collect();
        Ok(Some(draw(&all, number, cell.config.seed)?.into_iter().map(|i| all[i].clone()).collect()))
    }

    /// Trains; `sets`: the stages that annotated and selected. Gives the stage and the trained model.
    fn level(&self, cell: &Cell, student: &Model, sets: Option<(&str, &str)>) -> Result<(String, Model)> {
        let (config, settings) = (&cell.config, &cell.config.level);
        let data = match (cell.source, sets) {
            (Source::Parity, Some((_, parity))) => json!({"parity": parity, "rehearsal": settings.rehearsal}),
            (Source::Random, Some((pseudo, parity))) => json!({"random": pseudo, "as_many_as": parity}),
            (_, Some((pseudo, parity))) => json!({"all": pseudo, "of": parity}),
            (_, None) => json!({"labels": self.supervised}),
        };
        let plain = level::Settings { arms: Vec::new(), rehearsal: 0.0, ..settings.clone() }.decisive();
        let prompt = &config.predict.prompt;
        let about = json!({
            "model": student.key, "loading": student.how, "data": data, "settings": plain, "prompt": prompt, "seed": config.seed,
        });
        let name = self.stages.run("level", &about, |folder| {
            let (examples, mut trained) = self.examples(cell, sets)?;
            if examples.is_empty() {
                return Err(Error::Failure(format!(
                    "cell {}: there is nothing to level on: 0 samples",
                    cell.name
                )));
            }
            let mut options = settings.train(config.seed);
            options.pixels = student.how.pixels;
            trained.samples = examples.len();
            trained.steps = options.step_count(examples.len()).max(1);
            options.steps = Some(trained.steps);
            let samples = level::samples(&examples, prompt);
            let (trainable, out) = (&settings.trainable(), &folder.join("model"));
            let job = Job { model: &student.path, samples: &samples, trainable, options: &options, out };
            let fit = level::run(&format!("level {}", cell.name), self.engine, job, self.progress)?;
            trained.samples = trained.samples.saturating_sub(fit.skipped.len());
            files::write_json(&folder.join("trained.json"), &trained)
        })?;
        let out = self.stages.folder(&name).join("model");
        let leveled = match settings.trainable() {
            Trainable::Lora(_) => Model { adapter: Some(out), ..student.clone() },
            Trainable::Full(_) => Model { path: out, ..student.clone() },
        };
        Ok((name.clone(), Model { key: json!(name), ..leveled }))
    }

    fn examples(&self, cell: &Cell, sets: Option<(&str, &str)>) -> Result<(Vec<Example>, Trained)> {
        let (config, mut trained) = (&cell.config, Trained::default());
        let Some((pseudo, parity)) = sets else {
            let data = self.supervised.as_deref().unwrap_or_default();
            let examples = level::examples(&self.inputs.join(data))?;
            return Ok((level::readable(examples, self.progress)?, trained));
        };
        let folder = self.stages.folder(parity);
        let kept = level::examples(&folder.join("parity.jsonl"))?;
        let mut all = level::examples(&self.stages.folder(pseudo).join("annotate.jsonl"))?;
        if let Some(chosen) = self.chosen(cell, pseudo)? {
            all.retain(|example| chosen.contains(picture(&example.id, config.annotate.samples)));
        }
        (trained.pseudo, trained.parity) = (all.len(), kept.len());
        let examples = match cell.source {
            Source::Parity if kept.is_empty() => kept,
            Source::Parity => {
                let rehearsal = level::examples(&folder.join("rehearsal.jsonl"))?;
                level::mix(kept, &rehearsal, config.level.rehearsal, config.seed, self.progress)
            }
            Source::Random => level::random_subset(&all, kept.len(), config.seed, "random_subset"),
            Source::All | Source::Supervised => all,
        };
        Ok((examples, trained))
    }

    /// The levelled student as a checkpoint of its own, which the next round starts from.
    fn merge(&self, student: &Model) -> Result<Model> {
        let name = self.stages.run("merge", &json!({"model": student.key}), |folder| {
            let (out, making) = (folder.join("model"), folder.join(".model.tmp"));
            let Some(adapter) = &student.adapter else { return Ok(()) };
            for left in [&out, &making].into_iter().filter(|left| left.exists()) {
                fs::remove_dir_all(left).map_err(|e| Error::io(left, e))?;
            }
            self.engine.merge(&student.path, adapter, &making)?;
            fs::rename(&making, &out).map_err(|e| Error::io(&out, e))
        })?;
        let path = self.stages.folder(&name).join("model");
        Ok(Model { key: json!(name), path, adapter: None, how: student.how })
    }

    fn evaluate(&self, config: &Config, who: &str, model: &Model) -> Result<String> {
        let (Some(asked), Some(options)) = (&config.evaluate, config.evaluation()) else {
            return Err(Error::Failure("`evaluate.questions` is missing".to_string()));
        };
        let settings = json!({"model": model.key, "loading": model.how, "questions": asked.questions, "options": options});
        self.stages.run("evaluate", &settings, |folder| {
            let questions = asked.questions.questions(&self.inputs, &folder.join("questions.jsonl"))?;
            let (metric, name) = (asked.questions.metric(), format!("evaluate {who}"));
            let posed = Questions { file: &questions, metric };
            let batch = asked.batch.unwrap_or(config.predict.batch);
            evaluate::run(&name, posed, &options, &self.lazy(model), folder, batch, self.progress).map(|_| ())
        })
    }

    /// What a finished `evaluate` stage says.
    pub fn accuracy(&self, name: &str) -> Result<f64> {
        let path = self.stages.folder(name).join("scores.json");
        let accuracy = stage::read(&path)?.get("accuracy").and_then(Value::as_f64);
        accuracy.ok_or_else(|| Error::input(&path, "expected a number `accuracy`"))
    }
}
