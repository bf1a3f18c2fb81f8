//! Scores of predictions on a benchmark, question by question, as its public evaluator has them.
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::data::benchmarks::Files;
use crate::data::metrics::Norm;
use crate::data::official::{ENOUGH_ANSWERS, Metric};
use crate::data::records::{Reader, Record};
use crate::error::{Error, Result};
use crate::random;

/// Ids that are shown of those that are missing or unknown.
const SHOWN: usize = 10;

#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    pub metric: Metric,
    /// The mean over all questions, 0 ..= 1; a missing prediction scores 0.
    pub score: f64,
    /// Its 95 % interval: percentiles over resampled questions.
    pub interval: [f64; 2],
    pub questions: usize,
    /// Questions without a prediction, those whose picture could not be read among them.
    pub missing: usize,
    /// Lines that repeat an earlier prediction word by word; other repetitions are an error.
    pub duplicates: usize,
    /// Predictions for questions that the benchmark does not have.
    pub unknown: usize,
    /// Questions with too few answers for VQA accuracy to be 1 (ENOUGH_ANSWERS).
    pub few_answers: usize,
    pub missing_ids: Vec<String>,
    pub unknown_ids: Vec<String>,
    #[serde(skip)]
    pub per_question: Vec<Scored>,
}

/// One question.
#[derive(Clone, Debug, Serialize)]
pub struct Scored {
    pub question_id: Value,
    pub score: f64,
}

/// Scores a file of predictions with `metric`. The order is the benchmark's. Questions without answers and contradicting predictions are errors.
pub fn run(files: &Files<'_>, metric: Metric, predictions: &Path) -> Result<Scores> {
    let mut said = Predictions::read(predictions)?;
    let norm = Norm::new()?;
    let (mut per_question, mut missing, mut few_answers) = (Vec::new(), Vec::new(), 0);
    for record in questions(files)? {
        let record = record?;
        let answers: Vec<&str> = record.answers.iter().flatten().map(String::as_str).collect();
        few_answers += usize::from(metric == Metric::VqaAccuracy && answers.len() < ENOUGH_ANSWERS);
        let score = match said.by_id.get_mut(&record.id) {
            Some(prediction) => {
                prediction.asked = true;
                metric.score(&norm, &prediction.text, &answers)
            }
            None => {
                missing.push(record.id.clone());
                0.0
            }
        };
        let question_id = record.extra.get("question_id").cloned().unwrap_or(Value::String(record.id));
        per_question.push(Scored { question_id, score });
    }
    if per_question.is_empty() {
        return Err(Error::input(files.annotations, "holds no questions, so there is nothing to score"));
    }
    if said.lines == 0 {
        return Err(Error::input(predictions, "holds no predictions"));
    }
    let unknown = said.unknown();
    if missing.len() == per_question.len() && !unknown.is_empty() {
        let (theirs, ours) = (&unknown[0], &missing[0]);
        let what = format!(
            "none of its question ids is in {}: it has {theirs:?}, which has {ours:?}",
            files.annotations.display()
        );
        return Err(Error::input(predictions, what));
    }
    let first = |ids: &[String]| ids.iter().take(SHOWN).cloned().collect();
    let scores: Vec<f64> = per_question.iter().map(|one| one.score).collect();
    Ok(Scores {
        metric,
        score: mean(&scores),
        interval: interval(&scores),
        questions: scores.len(),
        missing: missing.len(),
        duplicates: said.duplicates,
        unknown: unknown.len(),
        few_answers,
        missing_ids: first(&missing),
        unknown_ids: first(&unknown),
        per_question,
    })
}

/// The records of a benchmark, each with answers and an id of its own; anything else is an error.
pub fn questions<'a>(files: &'a Files<'_>) -> Result<impl Iterator<Item = Result<Record>> + use<'a>> {
    let answered =
        |record: Record| if has_answers(&record) { Ok(record) } else { Err(unanswered(files, &record)) };
    Ok(asked(files)?.map(move |record| record.and_then(answered)))
}

pub fn has_answers(record: &Record) -> bool {
    record.answers.as_ref().is_some_and(|answers| !answers.is_empty())
}

/// The same, where answers may be missing: of test splits only the benchmark's server has them.
pub fn asked<'a>(files: &'a Files<'_>) -> Result<impl Iterator<Item = Result<Record>> + use<'a>> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut samples = files.open()?;
    Ok(std::iter::from_fn(move || {
        let Some(record) = samples.next() else {
            let doubled = |annotation: Result<Record>| match annotation {
                Ok(annotation) if seen.contains_key(&annotation.id) => {
                    let what = format!("question_id {} was there before", annotation.id);
                    Some(Err(Error::line(files.annotations, annotation.line, what)))
                }
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            };
            return samples.left().find_map(doubled);
        };
        Some(record.and_then(|record| match seen.insert(record.id.clone(), record.line) {
            None => Ok(record),
            Some(first) => {
                let what = format!("question_id {} was there before, on line {first}", record.id);
                Err(Error::line(files.list(), record.line, what))
            }
        }))
    }))
}

pub fn unanswered(files: &Files<'_>, record: &Record) -> Error {
    let what = match files.questions {
        None => "has no answers: a split without answers cannot be scored here".to_string(),
        Some(_) => format!("has no answers in {}", files.annotations.display()),
    };
    let file = files.list();
    Error::line(file, record.line, format!("question_id {} {what}", record.id))
}

struct Prediction {
    text: String,
    line: usize,
    asked: bool,
}

/// What was said to each question.
struct Predictions {
    by_id: HashMap<String, Prediction>,
    lines: usize,
    duplicates: usize,
}

impl Predictions {
    /// Reads {"question_id", "answer"}, and what `predict` writes: `prediction` goes before `answer`; rejected records say nothing.
    fn read(path: &Path) -> Result<Predictions> {
        let mut all = Predictions { by_id: HashMap::new(), lines: 0, duplicates: 0 };
        for record in Reader::open(path)? {
            let record = record?;
            all.lines += 1;
            if record.rejected.is_none() {
                all.add(path, record)?;
            }
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path, record: Record) -> Result<()> {
        let line = record.line;
        let id = match record.extra.get("question_id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(_) => {
                return Err(Error::line(path, line, "key `question_id`: expected a number or a string"));
            }
            // What `predict` wrote for records of this program. Beside `answer` alone `id` is a record with its label.
            None if record.named && record.prediction.is_some() => record.id.clone(),
            None => return Err(wrong_key(path, &record, "question_id")),
        };
        let Some(text) = record.prediction.as_ref().or(record.answer.as_ref()).cloned() else {
            return Err(wrong_key(path, &record, "answer"));
        };
        match self.by_id.get(&id) {
            None => drop(self.by_id.insert(id, Prediction { text, line, asked: false })),
            Some(first) if first.text == text => self.duplicates += 1,
            Some(first) => {
                let what = format!(
                    "question_id {id} is answered {text:?}, but on line {} {:?}: one prediction a question is expected",
                    first.line, first.text
                );
                return Err(Error::line(path, line, what));
            }
        }
        Ok(())
    }

    /// Ids that no question has asked for, in the order of the file.
    fn unknown(&self) -> Vec<String> {
        let mut unknown: Vec<(&String, usize)> =
            self.by_id.iter().filter(|(_, p)| !p.asked).map(|(id, p)| (id, p.line)).collect();
        unknown.sort_by_key(|(_, line)| *line);
        unknown.into_iter().map(|(id, _)| id.clone()).collect()
    }
}

fn wrong_key(path: &Path, record: &Record, key: &str) -> Error {
    let fields = [
        ("id", record.named),
        ("answer", record.answer.is_some()),
        ("prediction", record.prediction.is_some()),
    ];
    let fields = fields.into_iter().filter(|(_, there)| *there).map(|(key, _)| key);
    let keys: Vec<&str> = fields.chain(record.extra.keys().map(String::as_str)).take(20).collect();
    let has = if keys.is_empty() { "neither it nor others".to_string() } else { keys.join(", ") };
    let what =
        format!("missing key `{key}`; expected {{\"question_id\": ..., \"answer\": \"...\"}}, got {has}");
    Error::line(path, record.line, what)
}

fn mean(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

const RESAMPLES: usize = 1000;

/// The 2.5th and the 97.5th percentile of the mean over 1000 drawings of as many questions, with repetition (Efron 1979). The drawings are the
/// same in every run.
pub fn interval(scores: &[f64]) -> [f64; 2] {
    let mut rng = random::stream(0, &[random::hash("bootstrap")]);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = scores.iter().map(|_| scores[random::below(&mut rng, scores.len())]);
            drawn.sum::<f64>() / scores.len().max(1) as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    [means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40]]
}

impl Scores {
    /// One line a question: {"question_id", "score"}.
    pub fn lines(&self) -> Result<Vec<u8>> {
        let mut lines = Vec::new();
        for one in &self.per_question {
            let line = serde_json::to_string(one).map_err(|e| Error::Failure(format!("scores: {e}")))?;
            writeln!(lines, "{line}").map_err(|e| Error::Failure(format!("scores: {e}")))?;
        }
        Ok(lines)
    }

    pub fn table(&self) -> String {
        let [low, high] = self.interval.map(|bound| bound * 100.0);
        let mut text = format!(
            "{:<24} {:.2} %   95 % interval {low:.2} to {high:.2}\n",
            self.metric.name(),
            self.score * 100.0
        );
        text += &format!("{:<24} {}", "questions", self.questions);
        let counts = [
            ("missing (scored 0)", self.missing, &self.missing_ids[..]),
            ("repeated", self.duplicates, &[]),
            ("unknown", self.unknown, &self.unknown_ids),
        ];
        for (name, count, ids) in counts.into_iter().filter(|(_, count, _)| *count > 0) {
            let more = if ids.len() < count && !ids.is_empty() { ", ..." } else { "" };
            let ids = if ids.is_empty() {
                String::new()
            } else {
                format!("   question_id {}{more}", ids.join(", "))
            };
            text += &format!("\n{name:<24} {count}{ids}");
        }
        if self.few_answers > 0 {
            text += &format!(
                "\n{:<24} {}   with less than {ENOUGH_ANSWERS} VQA accuracy stays below 1",
                "few answers", self.few_answers
            );
        }
        text
    }
}

/// What EvalAI (TextVQA, OK-VQA) and the Robust Reading Competition (ST-VQA) take: a list of {question_id, answer}. For ChartQA, which has no
/// server, `annotation` stands beside them, as Qwen-VL's evaluator takes it. A question without a prediction has the empty answer.
pub fn submission(predictions: &Path, with_annotation: bool) -> Result<Vec<Value>> {
    let entry = |record: Result<Record>| {
        let record = record?;
        let question_id = record.extra.get("question_id").cloned().unwrap_or(Value::String(record.id));
        let mut entry = json!({"question_id": question_id, "answer": record.prediction.unwrap_or_default()});
        if with_annotation {
            entry["annotation"] = record.answers.and_then(|answers| answers.into_iter().next()).into();
        }
        Ok(entry)
    };
    Reader::open(predictions)?.map(entry).collect()
}
