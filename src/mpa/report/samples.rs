//! Samples of a run, spread evenly over its files, and why each was kept or rejected.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::embed::{Embedded, embed};
use super::scored::{Asked, answers};
use crate::data::records::{Reader, Record};
use crate::error::Result;

/// Samples that have one fate.
#[derive(Serialize)]
pub struct Group {
    pub title: String,
    pub why: String,
    /// Good, bad or neither: decides the colour.
    pub tone: &'static str,
    /// How many there are in the run; `cards` shows some of them.
    pub total: usize,
    pub cards: Vec<Card>,
}

#[derive(Serialize)]
pub struct Card {
    pub id: String,
    pub picture: Option<Embedded>,
    /// Why there is no picture.
    pub missing: Option<String>,
    pub question: Option<String>,
    pub lines: Vec<Line>,
    /// What the annotator wrote, where nothing could be made of it.
    pub wrote: Option<String>,
}

/// Who said what.
#[derive(Serialize)]
pub struct Line {
    pub who: String,
    pub said: String,
    /// Whether it agrees with the label, if that is known.
    pub right: Option<bool>,
}

/// Titles and explanations of the fates, and the step of the funnel that they belong to; those that no one has planned for show their name.
fn fate(name: &str, by_margin: bool) -> (String, String, &'static str, Step) {
    let (title, why, tone, step) = match name {
        "kept" if by_margin => (
            "Kept",
            "The label is more likely to the teacher than to the student, by the margin: this is what the student is levelled on.",
            "good",
            Step::Kept,
        ),
        "kept" => (
            "Kept",
            "The teacher agrees with its label, the student gives another answer: this is what the student is levelled on.",
            "good",
            Step::Kept,
        ),
        "student_right" => (
            "Left out: the student knows it",
            "Nothing to learn. Some may be mixed in as rehearsal.",
            "even",
            Step::StudentWrong,
        ),
        "teacher_inconsistent" => (
            "Left out: the teacher disagrees with itself",
            "The answer that it wrote down cannot be trusted.",
            "bad",
            Step::Consistent,
        ),
        "unparsed" => (
            "Left out: not a question with an answer",
            "No question or no answer could be found in what was written.",
            "bad",
            Step::Parsed,
        ),
        "unreadable" => ("Left out: the picture cannot be read", "", "bad", Step::Parsed),
        other => return (format!("Left out: {}", other.replace('_', " ")), String::new(), "bad", Step::Kept),
    };
    (title.to_string(), why.to_string(), tone, step)
}

/// A step of the funnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Parsed,
    Consistent,
    StudentWrong,
    Kept,
}

/// The fates of the pseudo-labels: `wanted` cards of the kept and half as many of each other fate.
pub fn fates(folder: &Path, by_margin: bool, wanted: usize) -> Result<Vec<(Step, Group)>> {
    let mut groups = Vec::new();
    // What was rejected as it was written is not asked about, so that the selection never sees it.
    let files = [
        ("parity.jsonl", Some("kept")),
        ("rehearsal.jsonl", Some("student_right")),
        ("annotate.jsonl", None),
        ("rejected.jsonl", None),
    ];
    for (name, all) in files {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let fate_of = |record: &Record| all.or(record.rejected.as_deref()).map(str::to_string);
        let records = || {
            let fated = |record: Result<Record>| record.map(|record| Some((fate_of(&record)?, record)));
            Ok(Reader::open_growing(&path)?.map(fated))
        };
        let count = if all == Some("kept") { wanted } else { wanted.div_ceil(2) };
        for (name, (total, records)) in spread(records, count)? {
            let (title, why, tone, step) = fate(&name, by_margin);
            let cards = records.iter().map(|record| label_card(&path, record, &name, by_margin)).collect();
            groups.push((step, Group { title, why, tone, total, cards }));
        }
    }
    Ok(groups)
}

fn label_card(file: &Path, record: &Record, fate: &str, by_margin: bool) -> Card {
    let said = |key: &str| record.extra.get(key).and_then(Value::as_str).map(str::to_string);
    let (teacher, student) = match fate {
        "kept" if !by_margin => (Some(true), Some(false)),
        "student_right" => (Some(true), Some(true)),
        "teacher_inconsistent" => (Some(false), None),
        _ => (None, None),
    };
    let mut lines = Vec::new();
    let mut line = |who: &str, said: Option<String>, right| {
        if let Some(said) = said {
            lines.push(Line { who: who.to_string(), said, right });
        }
    };
    line("label", record.answer.clone(), None);
    line("teacher", said("teacher"), teacher);
    line("student", said("student"), student);
    let wrote = record.question.is_none().then(|| record.annotation.clone()).flatten();
    card(file, record, lines, wrote)
}

/// Pictures by themselves.
pub fn pictures(file: &Path, wanted: usize) -> Result<Vec<Card>> {
    let records = || {
        let mut last: Option<String> = None;
        let first = move |record: Result<Record>| {
            let record = record?;
            let new = record.image.is_some() && record.image != last && record.rejected.is_none();
            last.clone_from(&record.image);
            Ok(new.then_some((String::new(), record)))
        };
        Ok(Reader::open_growing(file)?.map(first))
    };
    let chosen = spread(records, wanted)?.into_values().flat_map(|(_, records)| records);
    Ok(chosen.map(|record| card(file, &Record { question: None, ..record }, Vec::new(), None)).collect())
}

fn card(file: &Path, record: &Record, lines: Vec<Line>, wrote: Option<String>) -> Card {
    let (picture, missing) = match record.image_path(file).map(|path| embed(&path)) {
        Some(Ok(picture)) => (Some(picture), None),
        Some(Err(why)) => (None, Some(record.reason.clone().unwrap_or(why))),
        None => (None, None),
    };
    Card { id: record.id.clone(), picture, missing, question: record.question.clone(), lines, wrote }
}

/// Questions that were answered right before and wrong after, or the other way round; at most `wanted` cards each. `names`: how the two
/// are called. None if they were not asked the same.
pub fn changes(before: &Asked, after: &Asked, names: [&str; 2], wanted: usize) -> Result<Vec<Group>> {
    if before.ids != after.ids {
        return Ok(Vec::new());
    }
    let right = |scores: &[f64], i: usize| scores.get(i).is_some_and(|score| *score >= 0.5);
    let turned = |i: usize| match (right(&before.scores, i), right(&after.scores, i)) {
        (false, true) => Some("won"),
        (true, false) => Some("lost"),
        _ => None,
    };
    let pairs = || {
        let both = Reader::open_growing(&before.predictions)?
            .zip(Reader::open_growing(&after.predictions)?)
            .enumerate();
        Ok(both.map(|(i, (before, after))| Ok(turned(i).map(String::from).zip(Some((before?, after?))))))
    };
    let mut groups = Vec::new();
    for (kind, (total, pairs)) in spread(pairs, wanted)?.into_iter().rev() {
        let (title, tone) = match kind.as_str() {
            "won" => ("Won: wrong before, right after", "good"),
            _ => ("Lost: right before, wrong after", "bad"),
        };
        let cards = pairs.into_iter();
        let cards = cards.map(|pair| change_card(&before.predictions, pair, names, kind == "won")).collect();
        groups.push(Group { title: title.to_string(), why: String::new(), tone, total, cards });
    }
    Ok(groups)
}

fn change_card(file: &Path, (before, after): (Record, Record), names: [&str; 2], won: bool) -> Card {
    // Ten people have answered a question of TextVQA, mostly the same.
    let mut truth = answers(&before);
    let mut seen = HashSet::new();
    truth.retain(|answer| seen.insert(*answer));
    let truth = truth.join(" / ");
    let line = |who: &str, said: String, right| Line { who: who.to_string(), said, right };
    let lines = vec![
        line("truth", truth, None),
        line(names[0], before.prediction.clone().unwrap_or_default(), Some(!won)),
        line(names[1], after.prediction.unwrap_or_default(), Some(won)),
    ];
    card(file, &before, lines, None)
}

/// Of the items of each kind at most `wanted`, spread evenly over them, with how many there are. Goes through the items twice, so that
/// no more of them are held than are wanted.
fn spread<T, I>(items: impl Fn() -> Result<I>, wanted: usize) -> Result<BTreeMap<String, (usize, Vec<T>)>>
where
    I: Iterator<Item = Result<Option<(String, T)>>>,
{
    let mut kinds: BTreeMap<String, (usize, Vec<T>)> = BTreeMap::new();
    for item in items()? {
        if let Some((kind, _)) = item? {
            kinds.entry(kind).or_default().0 += 1;
        }
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for item in items()? {
        let Some((kind, item)) = item? else { continue };
        let Some((total, chosen)) = kinds.get_mut(&kind) else { continue };
        let i = seen.entry(kind).or_default();
        let share = |i: usize| i * wanted.min(*total) / *total;
        if share(*i + 1) > share(*i) {
            chosen.push(item);
        }
        *i += 1;
    }
    Ok(kinds)
}
