//! Everything that the page says of one folder, ready to be put into its template.
use std::collections::HashSet;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use minijinja::Value;
use serde::Serialize;

use super::curves::{self, About, Curve};
use super::samples::{self, Card, Group, Step};
use super::scored::{Scored, WHO, beyond_chance, difference};
use super::source::{Kind, Run, Section, Source};
use super::times::Times;
use crate::data::records::Reader;
use crate::error::Result;
use crate::mpa::run::Summary;

/// Pictures shown by themselves.
const STRIP: usize = 6;

#[derive(Default, Serialize)]
pub struct Part {
    name: String,
    missing: Vec<String>,
    numbers: Vec<Number>,
    verdict: Vec<String>,
    metric: String,
    scores: Vec<Row>,
    questions: usize,
    unreadable: usize,
    funnel: Vec<Stage>,
    steps: usize,
    loss: Option<Value>,
    legend: Vec<Row>,
    kept: Option<Value>,
    changes: Vec<Group>,
    times: Option<Times>,
    settings: Vec<Section>,
    table: Vec<Vec<String>>,
    plots: Vec<Plot>,
}

/// A drawing of an ablation: what of the scores it shows.
#[derive(Serialize)]
struct Plot {
    about: String,
    uri: Value,
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
    name: String,
    what: String,
    /// Percent of the questions.
    accuracy: String,
    interval: Option<Interval>,
    contains: Option<String>,
    gap_closed: Option<String>,
    samples: Option<usize>,
}

/// In percent, and its width.
#[derive(Clone, Serialize)]
pub struct Interval {
    low: String,
    high: String,
    width: String,
}

#[derive(Serialize)]
struct Stage {
    count: usize,
    /// Percent of the annotations, the width of the bar; the pictures have none.
    share: Option<String>,
    what: &'static str,
    pictures: Vec<Card>,
    groups: Vec<Group>,
}

/// `wanted`: samples shown of the kept; half as many of the other kinds. `per_hour`: what an hour of the device costs.
pub fn part(source: &Source, wanted: usize, per_hour: Option<f64>) -> Result<Part> {
    let part = Part { name: source.name.clone(), settings: source.settings.clone(), ..scores(source) };
    match &source.kind {
        Kind::Run(run) => of_run(source, run, part, wanted, per_hour),
        Kind::Evaluation => Ok(part),
        Kind::Ablation { table, plots } => {
            let uri = |bytes: &[u8]| format!("data:image/svg+xml;base64,{}", BASE64_STANDARD.encode(bytes));
            let plot = |(of, bytes): &(String, Vec<u8>)| Plot {
                about: match of.as_str() {
                    "scores" => "of each group before and after levelling, as in the table".to_string(),
                    axis => format!("after levelling against {axis}"),
                },
                uri: Value::from_safe_string(uri(bytes)),
            };
            Ok(Part { table: table.clone(), plots: plots.iter().map(plot).collect(), ..part })
        }
    }
}

fn scores(source: &Source) -> Part {
    let first = source.scored.first();
    Part {
        metric: first.map_or(String::new(), |scored| scored.metric.clone()),
        questions: first.map_or(0, |scored| scored.questions),
        unreadable: first.map_or(0, |scored| scored.unreadable),
        scores: source.scored.iter().map(|scored| row(scored, source.run())).collect(),
        ..Part::default()
    }
}

fn of_run(source: &Source, run: &Run, part: Part, wanted: usize, per_hour: Option<f64>) -> Result<Part> {
    let (folder, summary) = (&source.path, &run.summary);
    let (mut drawn, mut legend) = (Vec::new(), Vec::new());
    for (colour, (key, name, _)) in WHO.into_iter().enumerate() {
        if let Some(curve) = Curve::read(&folder.join("level").join(key).join("loss.jsonl"), colour)? {
            drawn.push(curve);
            let samples = summary.samples.get(key).copied();
            legend.push(Row { colour, name: name.to_string(), samples, ..Row::blank() });
        }
    }
    let loss = About { title: "Training loss by step", x: "step", y: "loss" };
    let kept = About { title: "Samples kept by pictures looked at", x: "pictures", y: "kept" };
    let asked = |key: &str| source.scored.iter().find(|scored| scored.key == key);
    let pair = asked("student").zip(levelled(source));
    let changes = match pair.and_then(|(a, b)| Some((a.asked.as_ref()?, b.asked.as_ref()?, &b.name))) {
        Some((before, after, name)) => samples::changes(before, after, ["student", name], wanted / 2)?,
        None => Vec::new(),
    };
    Ok(Part {
        missing: run.missing.clone(),
        numbers: numbers(source, summary),
        verdict: verdict(source, run),
        funnel: funnel(folder, run, wanted)?,
        steps: summary.steps,
        loss: curves::draw(&loss, &drawn)?,
        legend,
        kept: curves::draw(&kept, &Curve::kept(folder, 2)?.into_iter().collect::<Vec<_>>())?,
        changes,
        times: Times::of(folder, run, per_hour)?,
        ..part
    })
}

/// The arm that is the result of a run: the first of the table that was scored.
pub fn levelled(source: &Source) -> Option<&Scored> {
    source.scored.iter().find(|scored| !matches!(scored.key.as_str(), "teacher" | "student"))
}

pub fn percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

/// Percentage points with their sign.
pub fn points(difference: f64) -> String {
    format!("{:+.1}", difference * 100.0).replace('-', "\u{2212}")
}

pub fn shown([low, high]: [f64; 2]) -> Interval {
    Interval { low: percent(low), high: percent(high), width: percent(high - low) }
}

impl Row {
    fn blank() -> Row {
        let (name, what, accuracy) = (String::new(), String::new(), String::new());
        Row {
            colour: 0,
            name,
            what,
            accuracy,
            interval: None,
            contains: None,
            gap_closed: None,
            samples: None,
        }
    }
}

fn row(scored: &Scored, run: Option<&Run>) -> Row {
    let summary = run.map(|run| &run.summary);
    let closed = summary.and_then(|summary| summary.gap_closed.get(&scored.key));
    Row {
        colour: scored.colour,
        name: scored.name.clone(),
        what: scored.what.clone(),
        accuracy: percent(scored.score),
        interval: scored.interval().map(shown),
        contains: scored.contains.map(percent),
        gap_closed: closed.map(|share| format!("{:.0}", share * 100.0)),
        samples: summary.and_then(|summary| summary.samples.get(&scored.key).copied()),
    }
}

fn numbers(source: &Source, summary: &Summary) -> Vec<Number> {
    let shown = |scored: &Scored| format!("{} %", percent(scored.score));
    let score = |key: &str| source.scored.iter().find(|scored| scored.key == key).map(shown);
    let arm = levelled(source);
    let closed = arm.and_then(|arm| summary.gap_closed.get(&arm.key));
    let mut figures = vec![
        (score("student"), "student before"),
        (arm.map(shown), "student after"),
        (score("teacher"), "teacher"),
        (closed.map(|share| format!("{:.0} %", share * 100.0)), "of the gap closed"),
    ];
    if summary.scores.is_empty() {
        figures.push((Some(summary.pseudo_labels.to_string()), "annotations"));
        figures.push((Some(summary.select.kept.to_string()), "kept for the parity set"));
    }
    let number = |(value, label): (Option<String>, &'static str)| Some(Number { value: value?, label });
    figures.into_iter().filter_map(number).collect()
}

/// What the scores say, in words, whichever way they went.
fn verdict(source: &Source, run: &Run) -> Vec<String> {
    let score = |key: &str| source.scored.iter().find(|scored| scored.key == key);
    let (Some(student), Some(teacher)) = (score("student"), score("teacher")) else {
        let evaluated = source.settings.iter().any(|section| section.name == "evaluate");
        return match evaluated {
            true => vec!["Student and teacher are not both scored yet.".to_string()],
            false => vec!["The config has no [evaluate], so nothing was scored.".to_string()],
        };
    };
    let mut said = Vec::new();
    if teacher.score <= student.score {
        said.push(
            "The teacher is not ahead of the student on these questions, so there is no gap to close."
                .to_string(),
        );
    }
    let Some(after) = levelled(source) else {
        if run.missing.is_empty() {
            let why = match run.summary.select.kept {
                0 => "The parity set is empty",
                _ => "The config has no arms",
            };
            said.push(format!("{why}, so the student was not levelled."));
        }
        return said;
    };
    said.push(format!("Levelling changed the student\u{2019}s accuracy by {}.", against(student, after)));
    for other in source.scored.iter().filter(|other| other.colour > after.colour) {
        let than = against(other, after);
        said.push(format!("Against \u{201c}{}\u{201d} in the same number of steps: {than}.", other.name));
    }
    said
}

/// A difference, its interval, and whether it may be chance.
pub fn against(before: &Scored, after: &Scored) -> String {
    let (change, bounds) = difference(before, after);
    let bounds = bounds.map_or(String::new(), |bounds| {
        let chance = if beyond_chance(&bounds) { "" } else { ", so it may be chance" };
        format!(" (95 % interval {} to {}{chance})", points(bounds[0]), points(bounds[1]))
    });
    format!("{} points{bounds}", points(change))
}

fn funnel(folder: &Path, run: &Run, wanted: usize) -> Result<Vec<Stage>> {
    let summary = &run.summary;
    let (annotations, labels) = (folder.join("annotate.jsonl"), summary.pseudo_labels);
    if !annotations.exists() {
        return Ok(Vec::new());
    }
    let mut groups = samples::fates(folder, run.by_margin, wanted)?;
    let mut stage = |count: usize, what, step: Option<Step>| {
        let share = (labels > 0).then(|| percent(count as f64 / labels as f64));
        let (own, rest): (Vec<_>, Vec<_>) = groups.drain(..).partition(|(place, _)| Some(*place) == step);
        groups = rest;
        Stage { count, share, what, pictures: Vec::new(), groups: own.into_iter().map(|(_, g)| g).collect() }
    };
    let parsed = labels.saturating_sub(summary.rejected.values().sum());
    let mut all = vec![
        stage(labels, "annotations by the teacher", None),
        stage(parsed, "parsed: a question and an answer were found", Some(Step::Parsed)),
    ];
    if folder.join("select.json").exists() || run.missing.is_empty() {
        let counts = &summary.select;
        all.extend([
            stage(
                counts.teacher_consistent,
                "teacher consistent: asked again, it agrees with its label",
                Some(Step::Consistent),
            ),
            stage(
                counts.student_wrong,
                "student wrong, whether the teacher is consistent or not",
                Some(Step::StudentWrong),
            ),
            stage(counts.kept, "kept by the rule: the parity set", Some(Step::Kept)),
        ]);
    }
    let strip = samples::pictures(&annotations, STRIP.min(wanted))?;
    let count = pictures(&annotations)?;
    all.insert(0, Stage { count, share: None, what: "pictures", pictures: strip, groups: Vec::new() });
    Ok(all)
}

fn pictures(path: &Path) -> Result<usize> {
    let mut seen = HashSet::new();
    for record in Reader::open_growing(path)? {
        seen.extend(record?.image);
    }
    Ok(seen.len())
}
