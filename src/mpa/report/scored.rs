//! Scores with their intervals: from the questions that were asked, where these are there.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::Table;

use super::source::{Section, json};
use crate::data::metrics::{Norm, correct};
use crate::data::official::Metric;
use crate::data::records::{Reader, Record};
use crate::error::{Error, Result};
use crate::mpa::evaluate;
use crate::mpa::run::Summary;
use crate::mpa::score::interval;

/// Who is scored in a run, in the order of its table: name in files, name in the page, what it is. The place is the number of the colour.
pub const WHO: [(&str, &str, &str); 6] = [
    ("teacher", "teacher", "the large model, as it is"),
    ("student", "student", "the small model, as it is"),
    ("leveled", "levelled", "the student, levelled on the parity set"),
    ("parity_only", "parity only", "the same without rehearsal"),
    ("all_pseudo", "all pseudo", "levelled on all pseudo-labels, without selection"),
    (
        "random_subset",
        "random subset",
        "levelled on as many pseudo-labels as the parity set has, drawn at random",
    ),
];

pub struct Scored {
    /// What of another folder it is compared with: the name of an arm, or the benchmark.
    pub key: String,
    pub name: String,
    pub what: String,
    pub colour: usize,
    pub metric: String,
    /// 0 ..= 1, as is `contains`.
    pub score: f64,
    pub contains: Option<f64>,
    pub questions: usize,
    pub unreadable: usize,
    pub asked: Option<Asked>,
}

/// The questions, in their order.
pub struct Asked {
    pub predictions: PathBuf,
    /// Their ids, and hashes of question and answers: ids may be numbers that other files have too.
    pub ids: Vec<(String, [Option<u64>; 3])>,
    pub scores: Vec<f64>,
}

impl Scored {
    /// The 95 % interval.
    pub fn interval(&self) -> Option<[f64; 2]> {
        self.asked.as_ref().map(|asked| interval(&asked.scores))
    }
}

/// By how much `after` is better than `before`, with the 95 % interval of the difference question by question; none if they were not
/// asked the same.
pub fn difference(before: &Scored, after: &Scored) -> (f64, Option<[f64; 2]>) {
    let paired = before.asked.as_ref().zip(after.asked.as_ref()).filter(|(a, b)| a.ids == b.ids);
    let bounds = paired
        .map(|(a, b)| interval(&a.scores.iter().zip(&b.scores).map(|(a, b)| b - a).collect::<Vec<_>>()));
    (after.score - before.score, bounds)
}

/// Whether the difference is more than chance.
pub fn beyond_chance(bounds: &[f64; 2]) -> bool {
    bounds[0] > 0.0 || bounds[1] < 0.0
}

pub fn of_run(folder: &Path, summary: &Summary, config: &Table) -> Result<Vec<Scored>> {
    let rehearsal = config.get("level").and_then(|l| l.get("rehearsal")).and_then(toml::Value::as_float);
    let mut all = Vec::new();
    for (colour, (key, name, what)) in WHO.into_iter().enumerate() {
        let Some(scores) = summary.scores.get(key) else { continue };
        let what = match rehearsal {
            Some(share) if key == "leveled" && share > 0.0 => {
                format!("{what} and {share} times as many rehearsal samples")
            }
            _ => what.to_string(),
        };
        all.push(Scored {
            key: key.to_string(),
            name: name.to_string(),
            what,
            colour,
            asked: Asked::read(&folder.join("evaluate").join(key), scores.metric)?,
            ..plain(scores)
        });
    }
    Ok(all)
}

fn plain(scores: &evaluate::Scores) -> Scored {
    Scored {
        key: String::new(),
        name: String::new(),
        what: String::new(),
        colour: 2,
        metric: scores.metric.map_or("accuracy", Metric::name).to_string(),
        score: scores.accuracy,
        contains: Some(scores.contains),
        questions: scores.records,
        unreadable: scores.unreadable,
        asked: None,
    }
}

/// Of a folder that `mpa evaluate` has written, on a benchmark or on records.
pub fn of_evaluation(folder: &Path, settings: &[Section]) -> Result<Scored> {
    let path = folder.join("scores.json");
    let scores: Value = json(&path)?;
    let wrong = |e: serde_json::Error| Error::input(&path, e.to_string());
    let setting = |key: &str| {
        let rows = settings.iter().flat_map(|section| &section.rows);
        rows.into_iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    };
    // Records have `accuracy`, benchmarks `score`.
    let metric = scores.get("metric").filter(|metric| !metric.is_null()).cloned();
    let metric: Option<Metric> = metric.map(serde_json::from_value).transpose().map_err(wrong)?;
    let mut scored = match metric.filter(|_| scores.get("accuracy").is_none()) {
        None => plain(&serde_json::from_value(scores).map_err(wrong)?),
        Some(metric) => {
            let number = |key: &str| {
                let number = scores.get(key).and_then(Value::as_f64).filter(|number| number.is_finite());
                number.ok_or_else(|| Error::input(&path, format!("expected a number `{key}`")))
            };
            Scored {
                metric: metric.name().to_string(),
                score: number("score")?,
                contains: None,
                questions: number("questions")? as usize,
                unreadable: number("missing")? as usize,
                ..plain(&evaluate::Scores::default())
            }
        }
    };
    scored.key = setting("benchmark").unwrap_or_else(|| "questions".to_string());
    scored.name = scored.key.clone();
    let adapter = setting("adapter").map_or(String::new(), |adapter| format!(" with {adapter}"));
    scored.what = setting("model").map_or(String::new(), |model| format!("{model}{adapter}"));
    scored.asked = Asked::read(folder, metric)?;
    Ok(scored)
}

impl Asked {
    /// Of a folder of an evaluation: per_question.jsonl, else by `metric`, else whether predictions are right; none without predictions.
    fn read(folder: &Path, metric: Option<Metric>) -> Result<Option<Asked>> {
        let (predictions, scores) = (folder.join("predictions.jsonl"), folder.join("per_question.jsonl"));
        if !predictions.exists() {
            return Ok(None);
        }
        let norm = Norm::new()?;
        let mut asked = Asked { predictions, ids: Vec::new(), scores: Vec::new() };
        for record in Reader::open_growing(&asked.predictions)? {
            let record = record?;
            let score = |prediction: &String| match metric {
                Some(metric) => metric.score(&norm, prediction, &answers(&record)),
                None => f64::from(u8::from(correct(prediction, &answers(&record)))),
            };
            asked.scores.push(record.prediction.as_ref().map_or(0.0, score));
            let [_, texts @ ..] = record.texts();
            asked.ids.push((record.id, texts));
        }
        if scores.exists() {
            let official = Reader::open_growing(&scores)?.map(|record| score(&scores, &record?));
            let official: Vec<f64> = official.collect::<Result<_>>()?;
            if official.len() != asked.ids.len() {
                let (has, wanted) = (official.len(), asked.ids.len());
                let what =
                    format!("has {has} questions, expected the {wanted} of predictions.jsonl beside it");
                return Err(Error::input(&scores, what));
            }
            asked.scores = official;
        }
        Ok((!asked.ids.is_empty()).then_some(asked))
    }
}

fn score(path: &Path, record: &Record) -> Result<f64> {
    let score = record.extra.get("score").and_then(Value::as_f64).filter(|score| score.is_finite());
    score.ok_or_else(|| Error::line(path, record.line, "expected a number `score`"))
}

/// The accepted answers, if there are any.
pub fn answers(record: &Record) -> Vec<&str> {
    match (&record.answers, &record.answer) {
        (Some(list), _) if !list.is_empty() => list.iter().map(String::as_str).collect(),
        (_, one) => one.iter().map(String::as_str).collect(),
    }
}

/// Names of folders as short as they can be told apart.
pub fn short(paths: &[PathBuf]) -> Vec<String> {
    let last = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in paths.iter().filter_map(last) {
        *counts.entry(name).or_default() += 1;
    }
    let name = |path: &PathBuf| {
        last(path).filter(|name| counts.get(name) == Some(&1)).unwrap_or_else(|| path.display().to_string())
    };
    paths.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_of_answers_is_none() {
        let record = Record { answers: Some(Vec::new()), answer: Some("x".into()), ..Record::default() };
        assert_eq!(answers(&record), ["x"]);
        assert_eq!(answers(&Record { answers: Some(vec!["y".into()]), ..record }), ["y"]);
    }
}
