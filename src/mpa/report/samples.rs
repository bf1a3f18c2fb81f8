//! Samples of a run, spread evenly over its files, and why each was kept or rejected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::embed::{Embedded, embed};
use crate::data::metrics::correct;
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

/// Titles and explanations of the fates; those that no one has planned for show their name.
fn fate(name: &str) -> (String, String, &'static str) {
    let (title, why, tone) = match name {
        "kept" => (
            "Kept: the parity set",
            "Asked its own question again, the teacher gives the answer it wrote down; the student gives another. This is what the \
             student is levelled on.",
            "good",
        ),
        "student_right" => (
            "Not kept: the student knows it",
            "Teacher and student both agree with the label, so there is nothing to learn. Some may be mixed in as rehearsal.",
            "even",
        ),
        "teacher_inconsistent" => (
            "Rejected: the teacher disagrees with itself",
            "Asked its own question again, the teacher does not give the answer it wrote down, so the label cannot be trusted.",
            "bad",
        ),
        "unparsed" => (
            "Rejected: not a question with an answer",
            "What the annotator wrote has no question or no answer that could be found in it.",
            "bad",
        ),
        "unreadable" => ("Skipped: the picture cannot be read", "", "bad"),
        other => return (format!("Rejected: {other}"), String::new(), "bad"),
    };
    (title.to_string(), why.to_string(), tone)
}

/// The fates of the pseudo-labels: `wanted` cards of the kept and half as many of each other fate.
pub fn fates(folder: &Path, wanted: usize) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    let files = [
        ("parity.jsonl", Some("kept")),
        ("rehearsal.jsonl", Some("student_right")),
        ("rejected.jsonl", None),
    ];
    for (name, all) in files {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let fate_of = |record: &Record| all.or(record.rejected.as_deref()).unwrap_or("rejected").to_string();
        let records = || {
            let fated = |record: Result<Record>| record.map(|record| Some((fate_of(&record), record)));
            Ok(Reader::open(&path)?.map(fated))
        };
        let count = if all == Some("kept") { wanted } else { wanted.div_ceil(2) };
        for (name, (total, records)) in spread(records, count)? {
            let (title, why, tone) = fate(&name);
            let cards = records.iter().map(|record| label_card(&path, record, &name)).collect();
            groups.push(Group { title, why, tone, total, cards });
        }
    }
    Ok(groups)
}

fn label_card(file: &Path, record: &Record, fate: &str) -> Card {
    let said = |key: &str| record.extra.get(key).and_then(Value::as_str).map(str::to_string);
    let (teacher, student) = match fate {
        "kept" => (Some(true), Some(false)),
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

fn card(file: &Path, record: &Record, lines: Vec<Line>, wrote: Option<String>) -> Card {
    let (picture, missing) = match record.image_path(file).map(|path| embed(&path)) {
        Some(Ok(picture)) => (Some(picture), None),
        Some(Err(why)) => (None, Some(record.reason.clone().unwrap_or(why))),
        None => (None, None),
    };
    Card { id: record.id.clone(), picture, missing, question: record.question.clone(), lines, wrote }
}

/// Questions of the benchmark on which the student before and after (`arm`, shown as `name`) differ in being right.
pub fn changes(folder: &Path, arm: &str, name: &str, wanted: usize) -> Result<Vec<Group>> {
    let file = |who: &str| -> PathBuf { folder.join("evaluate").join(who).join("predictions.jsonl") };
    let (before, after) = (file("student"), file(arm));
    if !before.exists() || !after.exists() {
        return Ok(Vec::new());
    }
    let pairs = || {
        let both = Reader::open(&before)?.zip(Reader::open(&after)?);
        Ok(both.map(|(before, after)| Ok(turned(before?, after?))))
    };
    let text = |kind: &str| match kind {
        "won" => ("Won: wrong before, right after", "good"),
        _ => ("Lost: right before, wrong after", "bad"),
    };
    let mut groups = Vec::new();
    for (kind, (total, pairs)) in spread(pairs, wanted)?.into_iter().rev() {
        let (title, tone) = text(&kind);
        let cards = pairs.into_iter().map(|pair| change_card(&before, pair, name, kind == "won")).collect();
        let why = "Questions of the benchmark, which no stage but the evaluation sees.".to_string();
        groups.push(Group { title: title.to_string(), why, tone, total, cards });
    }
    Ok(groups)
}

/// "won" or "lost" if being right has changed.
fn turned(before: Record, after: Record) -> Option<(String, (Record, Record))> {
    let right = |record: &Record| {
        let answers: Vec<&str> = match (&record.answers, &record.answer) {
            (Some(list), _) => list.iter().map(String::as_str).collect(),
            (None, one) => one.iter().map(String::as_str).collect(),
        };
        record.prediction.as_ref().map(|prediction| correct(prediction, &answers))
    };
    let kind = match (right(&before)?, right(&after)?) {
        (false, true) => "won",
        (true, false) => "lost",
        _ => return None,
    };
    (before.id == after.id).then(|| (kind.to_string(), (before, after)))
}

fn change_card(file: &Path, (before, after): (Record, Record), name: &str, won: bool) -> Card {
    let truth = match (&before.answers, &before.answer) {
        (Some(list), _) => list.join(" / "),
        (None, one) => one.clone().unwrap_or_default(),
    };
    let line = |who: &str, said: String, right| Line { who: who.to_string(), said, right };
    let lines = vec![
        line("truth", truth, None),
        line("student", before.prediction.clone().unwrap_or_default(), Some(!won)),
        line(name, after.prediction.unwrap_or_default(), Some(won)),
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
