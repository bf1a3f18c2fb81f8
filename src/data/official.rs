//! The official metrics, per question: what the public evaluators compute, to the last bit that they print.
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::data::evalai;
use crate::data::metrics::Norm;
use crate::data::python;

/// How an answer is scored; each score is in 0 ..= 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// TextVQA, OK-VQA.
    VqaAccuracy,
    /// ST-VQA.
    Anls,
    /// ChartQA.
    RelaxedAccuracy,
    /// The paper's: the most frequent answer is found inside the prediction.
    Containment,
}

impl Metric {
    /// The score of `prediction`; `answers` is not empty.
    pub fn score(self, norm: &Norm, prediction: &str, answers: &[&str]) -> f64 {
        match self {
            Metric::VqaAccuracy => vqa_accuracy(prediction, answers),
            Metric::Anls => anls(prediction, answers),
            Metric::RelaxedAccuracy => {
                f64::from(u8::from(answers.iter().any(|answer| relaxed(prediction, answer))))
            }
            Metric::Containment => f64::from(u8::from(
                most_frequent(answers).is_some_and(|answer| norm.contains(prediction, answer)),
            )),
        }
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Metric::VqaAccuracy => "VQA accuracy",
            Metric::Anls => "ANLS",
            Metric::RelaxedAccuracy => "relaxed accuracy",
            Metric::Containment => "containment (the paper's)",
        }
    }
}

/// As it is written; of several the one that comes first, as of Python's `Counter.most_common` (the paper's code, utils/dataLoader.py).
fn most_frequent<'a>(answers: &[&'a str]) -> Option<&'a str> {
    let mut counts = HashMap::new();
    answers.iter().for_each(|answer| *counts.entry(answer).or_insert(0) += 1);
    // Of equal ones max_by_key gives the last.
    answers.iter().rev().max_by_key(|answer| counts.get(answer)).copied()
}

/// Answers below which VQA accuracy never is 1: three must be equal when one is left out.
pub const ENOUGH_ANSWERS: usize = 4;

/// Antol et al. 2015 (arXiv 1505.00468): the mean, over leaving one of the N answers out, of min(1, equal ones among the others / 3). Answers and
/// prediction are normalised as EvalAI does. 0 without answers.
pub fn vqa_accuracy(prediction: &str, answers: &[&str]) -> f64 {
    let prediction = evalai::normalise(prediction);
    let equal = answers.iter().filter(|answer| evalai::normalise(answer) == prediction).count();
    let share = |others: usize| (others as f64 / 3.0).min(1.0);
    let sum = equal as f64 * share(equal.saturating_sub(1)) + (answers.len() - equal) as f64 * share(equal);
    sum / answers.len().max(1) as f64
}

/// Average normalised Levenshtein similarity of one question (Biten et al. 2019, arXiv 1905.13648): 1 - the least distance / length over the
/// answers, 0 where that is below 0.5. The distance is of the texts in lower case with single spaces, the length that of the longer text as
/// it came, in capitals, as in the evaluator of the Robust Reading Competition. 0 without answers.
pub fn anls(prediction: &str, answers: &[&str]) -> f64 {
    let plain = |text: &str| -> Vec<char> {
        python::split(&text.to_lowercase()).collect::<Vec<_>>().join(" ").chars().collect()
    };
    let length = |text: &str| text.to_uppercase().chars().count();
    let (said, room) = (plain(prediction), length(prediction));
    let far = |answer: &&str| match room.max(length(answer)) {
        0 => 0.0,
        longest => levenshtein(&said, &plain(answer)) as f64 / longest as f64,
    };
    let similarity = 1.0 - answers.iter().map(far).fold(f64::INFINITY, f64::min);
    if similarity < 0.5 { 0.0 } else { similarity }
}

/// Insertions, deletions and exchanges of single characters from `a` to `b`.
fn levenshtein(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.iter().enumerate() {
            let exchanged = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

/// Masry et al. 2022 (arXiv 2203.10244), as pix2struct's and lmms-eval's evaluators have it (Qwen-VL's strips the prediction first): numbers may
/// be off by 5 % of the answer, everything else is equal in lower case. What ends in `%` counts as hundredths; an answer of 0 is compared as text.
pub fn relaxed(prediction: &str, answer: &str) -> bool {
    match (number(prediction), number(answer)) {
        (Some(said), Some(wanted)) if wanted != 0.0 => (said - wanted).abs() / wanted.abs() <= 0.05,
        _ => prediction.to_lowercase() == answer.to_lowercase(),
    }
}

fn number(text: &str) -> Option<f64> {
    match text.ends_with('%') {
        true => python::float(text.trim_end_matches('%')).map(|value| value / 100.0),
        false => python::float(text),
    }
}
