//! What each stage of a run took: time, tokens, and money where the price of the device is known.
use std::path::Path;

use serde::Serialize;

use super::page::percent;
use super::scored::WHO;
use super::source::{Run, records};
use crate::error::Result;
use crate::mpa::progress::span;
use crate::mpa::run::Work;

#[derive(Serialize)]
pub struct Times {
    device: String,
    stages: Vec<Row>,
    /// Some stage has its tokens; runs of before they were kept have none.
    counted: bool,
    per_hour: Option<f64>,
}

#[derive(Serialize)]
struct Row {
    stage: String,
    took: String,
    /// Percent of the whole.
    share: String,
    /// What was done in it, and how long one took.
    count: String,
    each: String,
    /// Pictures seen, tokens read and written; empty where no model was asked.
    pictures: String,
    read: String,
    written: String,
    cost: Option<String>,
}

impl Times {
    /// In the order in which the stages are run; none of a run that has no times.
    pub fn of(folder: &Path, run: &Run, per_hour: Option<f64>) -> Result<Option<Times>> {
        let Some(times) = run.times.as_ref().filter(|times| !times.seconds.is_empty()) else {
            return Ok(None);
        };
        let total: f64 = times.seconds.values().sum();
        let (mut stages, mut all) = (Vec::new(), Work::default());
        let row = |stage: String, seconds: f64, work: Work| {
            let shown = |count: usize| if count > 0 { count.to_string() } else { String::new() };
            Row {
                stage,
                took: span(seconds),
                share: percent(seconds / total.max(1e-9)),
                count: String::new(),
                each: String::new(),
                pictures: shown(work.pictures),
                read: shown(work.read),
                written: shown(work.written),
                cost: per_hour.map(|price| money(price * seconds / 3600.0)),
            }
        };
        for stage in order() {
            let Some(&seconds) = times.seconds.get(&stage) else { continue };
            let work = times.work.get(&stage).copied().unwrap_or_default();
            all.pictures += work.pictures;
            all.read += work.read;
            all.written += work.written;
            let mut row = row(named(&stage), seconds, work);
            if let Some((count, what)) = done(folder, run, &stage)? {
                row.count = format!("{count} {what}");
                row.each = format!("{:.1} ms", 1e3 * seconds / count as f64);
            }
            stages.push(row);
        }
        stages.push(row("all stages".to_string(), total, all));
        Ok(Some(Times { device: times.device.clone(), stages, counted: all != Work::default(), per_hour }))
    }
}

fn order() -> Vec<String> {
    let mut order: Vec<String> = vec!["annotate".into()];
    order.extend(
        ["predict_teacher", "evaluate_teacher", "predict_student", "evaluate_student"].map(String::from),
    );
    order.push("select".into());
    order.extend(WHO[2..].iter().flat_map(|(arm, ..)| [format!("level_{arm}"), format!("evaluate_{arm}")]));
    order
}

/// How many of what a stage has done.
fn done(folder: &Path, run: &Run, stage: &str) -> Result<Option<(usize, &'static str)>> {
    let (count, what) = match stage.split_once('_') {
        Some(("level", arm)) => (records(&folder.join("level").join(arm).join("loss.jsonl"))?, "steps"),
        Some(("evaluate", who)) => (run.summary.scores.get(who).map(|scores| scores.records), "questions"),
        Some((_, who)) => (records(&folder.join(format!("{who}.jsonl")))?, "questions"),
        None if stage == "annotate" => (Some(run.summary.pseudo_labels), "annotations"),
        None => (Some(run.summary.select.records), "labels"),
    };
    Ok(count.filter(|count| *count > 0).map(|count| (count, what)))
}

fn named(stage: &str) -> String {
    let name = |who: &str| {
        WHO.into_iter().find(|(key, ..)| *key == who).map_or(who.to_string(), |w| w.1.to_string())
    };
    match stage.split_once('_') {
        Some((what, who)) => format!("{what}: {}", name(who)),
        None => stage.to_string(),
    }
}

/// In the unit of the price; more digits of what is little.
fn money(amount: f64) -> String {
    let digits = if amount >= 1.0 { 2 } else { 4 };
    format!("{amount:.digits$}")
}
