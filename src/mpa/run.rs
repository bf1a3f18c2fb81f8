//! The whole loop in one folder. Every stage goes on where it stopped, so a killed run is simply started again.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::data::files;
use crate::data::records::Reader;
use crate::error::{Error, Result};
use crate::models::image::PixelBounds;
use crate::mpa::annotate;
use crate::mpa::answer::{Stage, Tally};
use crate::mpa::config::{self, Int8};
use crate::mpa::engine::{Engine, Job, Lazy, Loading};
use crate::mpa::evaluate::{self, Questions, Scores};
use crate::mpa::folder::{Folder, TIMES};
use crate::mpa::level::{self, Arm, Example};
use crate::mpa::predict;
use crate::mpa::progress::Progress;
use crate::mpa::report;
use crate::mpa::select::{self, Counts, Criterion, Outputs};
use crate::mpa::teacher;
use crate::train::fit::Trainable;

/// summary.json: what came of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Records that the annotator made, and how many of them are rejected, by reason.
    pub pseudo_labels: usize,
    pub rejected: BTreeMap<String, usize>,
    pub select: Counts,
    /// Optimizer steps of every arm.
    pub steps: usize,
    /// Samples that each arm was trained on.
    pub samples: BTreeMap<String, usize>,
    /// teacher, student and the arms; empty without `[evaluate]`.
    pub scores: BTreeMap<String, Scores>,
    /// Of each arm: how much of the accuracy between student and teacher it won; none where the teacher is not ahead.
    pub gap_closed: BTreeMap<String, f64>,
}

/// times.json: what the stages of a run took, over all starts that came to the end of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// What the last start computed on.
    pub device: String,
    pub seconds: BTreeMap<String, f64>,
    /// Of the stages that ask or train a model.
    #[serde(default)]
    pub work: BTreeMap<String, Work>,
}

/// What went through a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Through the vision side, each as often as it was seen.
    pub pictures: usize,
    /// Of prompts and drafts, or of samples learned from; none that were shared with another prompt.
    pub read: usize,
    pub written: usize,
}

impl Times {
    /// Of a run folder; none of one that was copied without them or made before they were kept.
    pub fn read(folder: &Path) -> Result<Option<Times>> {
        let path = folder.join(TIMES);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::input(&path, e.to_string()))
    }
}

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    #[serde(serialize_with = "files::lossy")]
    pub folder: PathBuf,
    #[serde(flatten)]
    pub summary: Summary,
    /// What each stage took this time.
    pub seconds: BTreeMap<String, f64>,
}

/// Runs the loop of the config file at `config`, or goes on with it. `out` as in `Folder::open`.
pub fn run(engine: &dyn Engine, config: &Path, out: Option<&Path>, progress: &Progress) -> Result<Outcome> {
    let folder = Folder::open(engine, config, out)?;
    progress.note(&format!("run folder: {}", folder.path.display()));
    // Nothing depends on them: a file that cannot be read is no reason to stop.
    let lost = |error: Error| progress.warn(&format!("{error}; the times of earlier starts are lost"));
    let mut times = Times::read(&folder.path).map_err(lost).ok().flatten().unwrap_or_default();
    times.device = engine.device();
    let (summary, seconds) = (Summary::default(), BTreeMap::new());
    let mut run = Run { engine, folder, progress, summary, seconds, times };
    run.teacher()?;
    run.student()?;
    run.select()?;
    if run.summary.select.kept > 0 {
        run.level()?;
    }
    run.close()?;
    if run.summary.select.kept == 0 {
        return Err(Error::Failure(format!(
            "{}: the parity set is empty (of {} pseudo labels {} were rejected, {} had the teacher's agreement), so there is nothing to \
             level on; the rest is done",
            run.folder.path.display(),
            run.summary.pseudo_labels,
            run.summary.rejected.values().sum::<usize>(),
            run.summary.select.teacher_consistent
        )));
    }
    Ok(Outcome { folder: run.folder.path.clone(), summary: run.summary, seconds: run.seconds })
}

struct Run<'a> {
    engine: &'a dyn Engine,
    folder: Folder,
    progress: &'a Progress,
    summary: Summary,
    seconds: BTreeMap<String, f64>,
    times: Times,
}

impl<'a> Run<'a> {
    /// All that the teacher does, while it is in memory.
    fn teacher(&mut self) -> Result<()> {
        let int8 = self.folder.config.models.teacher_int8.and_then(Int8::parts);
        let pixels = self.pixels("teacher")?;
        let kv_cache = self.folder.config.models.teacher_kv_cache;
        let teacher = self.model("teacher", None)?.loading(Loading { int8, pixels, kv_cache });
        let (home, listed) = (&self.folder.path, self.file("pictures.jsonl"));
        let images = self.folder.config.annotate.images.pictures(home, &listed)?;
        let options = (&self.folder.config.annotation(), &self.folder.config.prediction());
        let (out, batch) = (self.file("annotate.jsonl"), self.folder.config.annotate.batch);
        let predictions = self.file("teacher.jsonl");
        self.all_annotated(&images, options.0, &out)?;
        // What is left for `predict` below is to see that all is there.
        self.timed("annotate", |run| {
            teacher::run(&images, options, &teacher, [&out, &predictions], batch, run.progress)
        })?;
        self.answered("annotate", &teacher)?;
        let tally = Tally::of(&out)?;
        if !tally.rejected.is_empty() {
            let counts: Vec<String> = tally.rejected.iter().map(|(why, n)| format!("{n} {why}")).collect();
            let counts = counts.join(", ");
            self.progress.warn(&format!("annotate: rejected {counts} of {} records", tally.records));
        }
        (self.summary.pseudo_labels, self.summary.rejected) = (tally.records, tally.rejected);
        self.predict("teacher", &teacher)?;
        self.evaluate("teacher", &teacher)
    }

    /// Pictures that came after the selection would change what the students were levelled on. They come last: a stage notices others.
    fn all_annotated(&self, images: &Path, options: &annotate::Options, out: &Path) -> Result<()> {
        if !self.file("select.json").exists() {
            return Ok(());
        }
        let (stage, records, _) = annotate::open(images, options, out)?;
        let Some(last) = records.last().transpose()? else { return Ok(()) };
        let mut ids = stage.ids(&last);
        ids.push(last.id);
        for record in Reader::open_growing(out)? {
            if ids.contains(&record?.id) {
                return Ok(());
            }
        }
        let what = format!("{:?} was not there when this run selected: take another --out", ids[0]);
        Err(Error::input(images, what))
    }

    fn student(&mut self) -> Result<()> {
        let student = self.model("student", None)?;
        self.predict("student", &student)?;
        self.evaluate("student", &student)
    }

    fn predict(&mut self, who: &str, model: &Lazy<'_>) -> Result<()> {
        let options = self.folder.config.prediction();
        let (questions, out) = (self.file("annotate.jsonl"), self.file(&format!("{who}.jsonl")));
        let batch = self.folder.config.predict.batch;
        let (name, stage) = (format!("predict {who}"), format!("predict_{who}"));
        self.timed(&stage, |run| {
            predict::run(&name, &questions, &options, model, &out, batch, run.progress)
        })?;
        self.answered(&stage, model)
    }

    fn evaluate(&mut self, who: &str, model: &Lazy<'_>) -> Result<()> {
        let config = &self.folder.config;
        let Some((evaluate, options)) = config.evaluate.as_ref().zip(config.evaluation()) else {
            return Ok(());
        };
        let (home, listed) = (&self.folder.path, self.file("evaluate/questions.jsonl"));
        let questions = evaluate.questions.questions(home, &listed)?;
        let asked = Questions { file: &questions, metric: evaluate.questions.metric() };
        let out = self.file(&format!("evaluate/{who}"));
        let batch = evaluate.batch.unwrap_or(config.predict.batch);
        let (name, stage) = (format!("evaluate {who}"), format!("evaluate_{who}"));
        let scores = self
            .timed(&stage, |run| evaluate::run(&name, asked, &options, model, &out, batch, run.progress))?;
        self.answered(&stage, model)?;
        self.progress.note(&format!("{name}: accuracy {:.4}", scores.accuracy));
        self.summary.scores.insert(who.to_string(), scores);
        Ok(())
    }

    fn select(&mut self) -> Result<()> {
        let [teacher, student, parity, rehearsal, rejected] =
            ["teacher", "student", "parity", "rehearsal", "rejected"]
                .map(|name| self.file(&format!("{name}.jsonl")));
        let outputs =
            Outputs { parity: Some(&parity), rehearsal: Some(&rehearsal), rejected: Some(&rejected) };
        let config::Select { rule, margin } = self.folder.config.select;
        let criterion = Criterion { rule, margin };
        let counts = self.timed("select", |_| select::run(&teacher, &student, criterion, outputs))?;
        files::write_json(&self.file("select.json"), &counts)?;
        self.progress.note(&format!("select: kept {} of {}", counts.kept, counts.records));
        self.summary.select = counts;
        Ok(())
    }

    /// Trains and scores every arm.
    fn level(&mut self) -> Result<()> {
        let settings = self.folder.config.level.clone();
        let leveled = self.examples(Arm::Leveled)?;
        let (trainable, mut options) = (settings.trainable(), settings.train(self.folder.config.seed));
        options.pixels = self.pixels("student")?;
        self.summary.steps = options.step_count(leveled.len()).max(1);
        options.steps = Some(self.summary.steps);
        let (model, prompt) = (self.file("inputs/student"), self.folder.config.predict.prompt.clone());
        for arm in settings.arms {
            let (name, out) = (arm.name(), self.file(&format!("level/{}", arm.name())));
            let examples = if arm == Arm::Leveled { leveled.clone() } else { self.examples(arm)? };
            let samples = level::samples(&examples, &prompt);
            let shown = format!("level {name}");
            let (samples, trainable, options) = (&samples, &trainable, &options);
            let job = Job { model: &model, samples, trainable, options, out: &out };
            let stage = format!("level_{name}");
            let fit = self.timed(&stage, |run| level::run(&shown, run.engine, job, run.progress))?;
            let learned = samples.len().saturating_sub(fit.skipped.len());
            self.summary.samples.insert(name.to_string(), learned);
            // Of all its steps, whichever start took them.
            self.worked(&stage, Work { read: fit.tokens, ..Work::default() })?;
            let leveled = match trainable {
                Trainable::Lora(_) => self.model("student", Some(out))?,
                Trainable::Full(_) => {
                    let loading = Loading { pixels: self.pixels("student")?, ..Loading::default() };
                    Lazy::new(self.engine, out, None, self.progress).loading(loading)
                }
            };
            self.evaluate(name, &leveled)?;
        }
        Ok(())
    }

    fn examples(&self, arm: Arm) -> Result<Vec<Example>> {
        let seed = self.folder.config.seed;
        let parity = || level::examples(&self.file("parity.jsonl"));
        let all = || level::examples(&self.file("annotate.jsonl"));
        match arm {
            Arm::ParityOnly => parity(),
            Arm::AllPseudo => all(),
            Arm::RandomSubset => {
                Ok(level::random_subset(&all()?, self.summary.select.kept, seed, "random_subset"))
            }
            Arm::Leveled => {
                let rehearsal = level::examples(&self.file("rehearsal.jsonl"))?;
                let fraction = self.folder.config.level.rehearsal;
                Ok(level::mix(parity()?, &rehearsal, fraction, seed, self.progress))
            }
        }
    }

    fn close(&mut self) -> Result<()> {
        let accuracy = |who: &str| self.summary.scores.get(who).map(|scores| scores.accuracy);
        if let (Some(teacher), Some(student)) = (accuracy("teacher"), accuracy("student"))
            && teacher > student
        {
            let arms = self.summary.samples.keys();
            let closed =
                arms.filter_map(|arm| Some((arm.clone(), (accuracy(arm)? - student) / (teacher - student))));
            self.summary.gap_closed = closed.collect();
        }
        files::write_json(&self.file("summary.json"), &self.summary)?;
        report::write(&self.folder.path)
    }

    fn model(&self, who: &str, adapter: Option<PathBuf>) -> Result<Lazy<'a>> {
        let loading = Loading { pixels: self.pixels(who)?, ..Loading::default() };
        Ok(Lazy::new(self.engine, self.file(&format!("inputs/{who}")), adapter, self.progress)
            .loading(loading))
    }

    fn pixels(&self, who: &str) -> Result<PixelBounds> {
        self.folder.config.models.pixels_of(&self.file(&format!("inputs/{who}")))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.file(name)
    }

    /// Adds what a model was asked in a stage.
    fn answered(&mut self, stage: &str, model: &Lazy<'_>) -> Result<()> {
        let (spent, before) = (model.take_spent(), self.times.work.get(stage).copied().unwrap_or_default());
        let work = Work {
            pictures: before.pictures + spent.pictures,
            read: before.read + spent.prompt_tokens,
            written: before.written + spent.new_tokens,
        };
        self.worked(stage, work)
    }

    fn worked(&mut self, stage: &str, work: Work) -> Result<()> {
        if work == Work::default() {
            return Ok(());
        }
        self.times.work.insert(stage.to_string(), work);
        files::write_json(&self.file(TIMES), &self.times)
    }

    fn timed<T>(&mut self, stage: &str, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work(self)?;
        let seconds = start.elapsed().as_secs_f64();
        self.seconds.insert(stage.to_string(), seconds);
        *self.times.seconds.entry(stage.to_string()).or_default() += seconds;
        files::write_json(&self.file(TIMES), &self.times)?;
        Ok(result)
    }
}
