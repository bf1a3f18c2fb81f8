//! Everything that the page says, ready to be put into its template.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use minijinja::Value;
use serde::Serialize;
use toml::Table;

use super::curves::{self, Curve};
use super::samples::{self, Group};
use crate::data::records::Reader;
use crate::error::{Error, Result};
use crate::mpa::evaluate::Scores;
use crate::mpa::folder::STARTED;
use crate::mpa::run::Summary;

/// Samples shown of the parity set; half as many of the other kinds.
const SHOWN: usize = 12;

/// Who is scored, in the order of the table: name in files, name in the page, what it is. The place is the number of the colour.
const WHO: [(&str, &str, &str); 6] = [
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

#[derive(Serialize)]
pub struct Page {
    numbers: Vec<Number>,
    verdict: Vec<String>,
    scores: Vec<Row>,
    questions: usize,
    unreadable: usize,
    funnel: Vec<Stage>,
    rejected: BTreeMap<String, usize>,
    steps: usize,
    curves: Option<Value>,
    legend: Vec<Row>,
    changes: Vec<Group>,
    labels: Vec<Group>,
    settings: Vec<Section>,
}

/// A figure of the headline.
#[derive(Serialize)]
struct Number {
    value: String,
    label: &'static str,
}

/// A row of the table of scores.
#[derive(Clone, Serialize)]
struct Row {
    colour: usize,
    name: &'static str,
    what: String,
    /// Percent of the questions, and half the width of the 95 % interval.
    accuracy: String,
    margin: String,
    contains: String,
    gap_closed: Option<String>,
    samples: Option<usize>,
}

#[derive(Serialize)]
struct Stage {
    count: usize,
    /// Percent of the pseudo-labels, the width of the bar; the pictures have none.
    share: Option<String>,
    what: &'static str,
}

#[derive(Serialize)]
struct Section {
    name: String,
    rows: Vec<(String, String)>,
}

pub fn gather(folder: &Path) -> Result<Page> {
    let path = folder.join("summary.json");
    let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let summary: Summary = serde_json::from_slice(&bytes).map_err(|e| Error::input(&path, e.to_string()))?;
    let config = read_config(&folder.join(STARTED))?;
    let scores = rows(&summary, &config);
    let mut drawn = Vec::new();
    let mut legend = Vec::new();
    for (colour, (name, ..)) in WHO.iter().enumerate() {
        drawn.extend(Curve::read(&folder.join("level").join(name).join("loss.jsonl"), colour)?);
    }
    for curve in &drawn {
        legend.push(row(&summary, &config, curve.colour));
    }
    let best = levelled(&summary);
    let changes = best.map(|i| samples::changes(folder, WHO[i].0, WHO[i].1, SHOWN / 2)).transpose()?;
    let counted = summary.scores.values().next();
    Ok(Page {
        numbers: numbers(&summary),
        verdict: verdict(&summary),
        questions: counted.map_or(0, |s| s.records),
        unreadable: counted.map_or(0, |s| s.unreadable),
        scores,
        funnel: funnel(folder, &summary)?,
        rejected: summary.select.rejected.clone(),
        steps: summary.steps,
        curves: curves::draw(&drawn)?,
        legend,
        changes: changes.unwrap_or_default(),
        labels: samples::fates(folder, SHOWN)?,
        settings: sections(&config),
    })
}

fn read_config(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    text.parse().map_err(|e: toml::de::Error| Error::input(path, e.to_string()))
}

/// The arm that is the result of the run: the first of the table that was scored.
fn levelled(summary: &Summary) -> Option<usize> {
    (2..WHO.len()).find(|&i| summary.scores.contains_key(WHO[i].0))
}

fn percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

/// Percentage points with their sign.
fn points(difference: f64) -> String {
    format!("{:+.1}", difference * 100.0).replace('-', "\u{2212}")
}

/// Half the width of the 95 % interval of an accuracy.
fn margin(scores: &Scores) -> f64 {
    1.96 * (scores.accuracy * (1.0 - scores.accuracy) / scores.records.max(1) as f64).sqrt()
}

fn rows(summary: &Summary, config: &Table) -> Vec<Row> {
    let scored = |i: &usize| summary.scores.contains_key(WHO[*i].0);
    (0..WHO.len()).filter(scored).map(|i| row(summary, config, i)).collect()
}

fn row(summary: &Summary, config: &Table, colour: usize) -> Row {
    let (key, name, what) = WHO[colour];
    let scores = summary.scores.get(key);
    let show = |value: fn(&Scores) -> f64| scores.map_or(String::new(), |s| percent(value(s)));
    let rehearsal = config.get("level").and_then(|l| l.get("rehearsal")).and_then(toml::Value::as_float);
    let what = match rehearsal {
        Some(share) if key == "leveled" && share > 0.0 => {
            format!("{what} and {share} times as many rehearsal samples")
        }
        _ => what.to_string(),
    };
    Row {
        colour,
        name,
        what,
        accuracy: show(|s| s.accuracy),
        margin: show(margin),
        contains: show(|s| s.contains),
        gap_closed: summary.gap_closed.get(key).map(|share| format!("{:.0}", share * 100.0)),
        samples: summary.samples.get(key).copied(),
    }
}

fn numbers(summary: &Summary) -> Vec<Number> {
    let score = |key: &str| summary.scores.get(key).map(|s| s.accuracy);
    let arm = levelled(summary).map(|i| WHO[i].0);
    let accuracy = |key: &str| score(key).map(|share| format!("{} %", percent(share)));
    let closed =
        arm.and_then(|arm| summary.gap_closed.get(arm)).map(|share| format!("{:.0} %", share * 100.0));
    let mut figures = vec![
        (accuracy("student"), "student before"),
        (arm.and_then(accuracy), "student after"),
        (accuracy("teacher"), "teacher"),
        (closed, "of the gap closed"),
    ];
    if summary.scores.is_empty() {
        figures.push((Some(summary.pseudo_labels.to_string()), "annotations"));
        figures.push((Some(summary.select.kept.to_string()), "kept for the parity set"));
    }
    let number = |(value, label): (Option<String>, &'static str)| Some(Number { value: value?, label });
    figures.into_iter().filter_map(number).collect()
}

/// What the scores say, in words, whichever way they went.
fn verdict(summary: &Summary) -> Vec<String> {
    let score = |key: &str| summary.scores.get(key);
    let (Some(student), Some(teacher)) = (score("student"), score("teacher")) else {
        return vec!["The config has no [evaluate], so nothing was scored.".to_string()];
    };
    let mut said = Vec::new();
    if teacher.accuracy <= student.accuracy {
        said.push(
            "The teacher is not ahead of the student on these questions, so there is no gap to close."
                .to_string(),
        );
    }
    let Some((i, after)) = levelled(summary).and_then(|i| Some((i, score(WHO[i].0)?))) else {
        said.push("The parity set is empty, so the student was not levelled.".to_string());
        return said;
    };
    said.push(format!("Levelling changed the student's accuracy by {}.", against(after, student)));
    for &(key, name, _) in &WHO[i + 1..] {
        if let Some(other) = score(key) {
            said.push(format!(
                "Against \u{201c}{name}\u{201d} in the same number of steps: {}.",
                against(after, other)
            ));
        }
    }
    said
}

/// A difference of accuracies, with the remark that it may be chance where it is small. (The interval is that of independent
/// questions: the same questions were asked, so it is rather too wide.)
fn against(a: &Scores, b: &Scores) -> String {
    let difference = a.accuracy - b.accuracy;
    let margin = margin(a).hypot(margin(b));
    let chance = if difference.abs() < margin {
        format!(" (within chance, \u{b1} {})", percent(margin))
    } else {
        String::new()
    };
    format!("{} points{chance}", points(difference))
}

fn funnel(folder: &Path, summary: &Summary) -> Result<Vec<Stage>> {
    let labels = summary.pseudo_labels;
    let unusable: usize = summary.rejected.values().sum();
    let stage = |count: usize, what| {
        let share = (labels > 0).then(|| percent(count as f64 / labels as f64));
        Stage { count, share, what }
    };
    let pictures = Stage { count: pictures(&folder.join("annotate.jsonl"))?, share: None, what: "pictures" };
    Ok(vec![
        pictures,
        stage(labels, "annotations by the teacher"),
        stage(labels.saturating_sub(unusable), "pseudo-labels: a question and an answer were found in them"),
        stage(summary.select.teacher_consistent, "teacher consistent: asked again, it agrees with its label"),
        stage(summary.select.kept, "of these the student is wrong: kept, the parity set"),
    ])
}

fn pictures(path: &Path) -> Result<usize> {
    let mut seen = HashSet::new();
    if path.exists() {
        for record in Reader::open(path)? {
            seen.extend(record?.image);
        }
    }
    Ok(seen.len())
}

/// The config by section, in the order in which the stages use it.
fn sections(config: &Table) -> Vec<Section> {
    const ORDER: [&str; 6] = ["models", "annotate", "predict", "select", "level", "evaluate"];
    let plain = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let mut sections = vec![Section { name: "run".to_string(), rows: Vec::new() }];
    let place = |name: &str| ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len());
    let mut keys: Vec<&String> = config.keys().collect();
    keys.sort_by_key(|name| (place(name), name.as_str()));
    for name in keys {
        match &config[name] {
            toml::Value::Table(table) => {
                let rows = table.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
                sections.push(Section { name: name.clone(), rows });
            }
            value => sections[0].rows.push((name.clone(), plain(value))),
        }
    }
    sections.retain(|section| !section.rows.is_empty());
    sections
}
