//! What changed between folders: the first is what the others are compared with.
use std::collections::BTreeMap;

use serde::Serialize;

use super::page::{Interval, levelled, percent, points, shown};
use super::samples::{self, Group};
use super::scored::{Asked, Scored, beyond_chance, difference};
use super::source::{Kind, Run, Section, Source};
use crate::error::Result;

#[derive(Serialize)]
pub struct Comparison {
    names: Vec<String>,
    scores: Vec<Line<Option<Cell>>>,
    funnel: Vec<Line<String>>,
    settings: Vec<Line<String>>,
    /// All settings are known, so that if there are no such lines they are the same.
    same: bool,
    flips: Vec<Flips>,
}

/// A row with an entry for each folder.
#[derive(Serialize)]
struct Line<T> {
    name: String,
    cells: Vec<T>,
}

#[derive(Serialize)]
struct Cell {
    score: String,
    interval: Option<Interval>,
    /// Against the first folder that has this row, in points, with its interval; none in that folder.
    change: Option<String>,
    bounds: Option<[String; 2]>,
    /// better, worse, or neither: it may be chance.
    tone: &'static str,
}

/// Samples whose answers turned from right to wrong, or back.
#[derive(Serialize)]
struct Flips {
    title: String,
    groups: Vec<Group>,
}

/// None of less than two folders; an ablation is a comparison itself.
pub fn compare(sources: &[Source], wanted: usize) -> Result<Option<Comparison>> {
    let sources: Vec<&Source> =
        sources.iter().filter(|source| !matches!(source.kind, Kind::Ablation { .. })).collect();
    if sources.len() < 2 {
        return Ok(None);
    }
    let sources = sources.as_slice();
    Ok(Some(Comparison {
        names: sources.iter().map(|source| source.name.clone()).collect(),
        scores: scores(sources),
        funnel: funnel(sources),
        same: sources.iter().all(|source| !source.settings.is_empty()),
        settings: settings(sources),
        flips: flips(sources, wanted)?,
    }))
}

/// The keys of all folders, each once, in the order in which they come.
fn keys<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut keys = Vec::new();
    for key in all {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

fn scores(sources: &[&Source]) -> Vec<Line<Option<Cell>>> {
    let all = || sources.iter().flat_map(|source| &source.scored);
    let line = |key: &str| {
        let first = all().find(|scored| scored.key == key);
        let cell = |source: &&Source| {
            let scored = source.scored.iter().find(|scored| scored.key == key)?;
            Some(cell(first.filter(|first| !std::ptr::eq(*first, scored)), scored))
        };
        let name = first.map_or(String::new(), |scored| format!("{}, {}", scored.name, scored.metric));
        Line { name, cells: sources.iter().map(cell).collect() }
    };
    keys(all().map(|scored| scored.key.as_str())).into_iter().map(line).collect()
}

fn cell(first: Option<&Scored>, scored: &Scored) -> Cell {
    let change = first.filter(|first| first.metric == scored.metric).map(|first| difference(first, scored));
    let bounds = change.and_then(|(_, bounds)| bounds);
    let tone = match bounds.filter(beyond_chance) {
        Some([low, _]) if low > 0.0 => "yes",
        Some(_) => "no",
        None => "dim",
    };
    Cell {
        score: percent(scored.score),
        interval: scored.interval().map(shown),
        change: change.map(|(change, _)| points(change)),
        bounds: bounds.map(|bounds| bounds.map(points)),
        tone,
    }
}

fn funnel(sources: &[&Source]) -> Vec<Line<String>> {
    let line = |name: &str, count: fn(&Run) -> usize| {
        let cells = sources.iter();
        let cells = cells.map(|s| s.run().map_or("\u{2013}".to_string(), |run| count(run).to_string()));
        Line { name: name.to_string(), cells: cells.collect() }
    };
    if sources.iter().all(|source| source.run().is_none()) {
        return Vec::new();
    }
    vec![
        line("annotations", |run| run.summary.pseudo_labels),
        line("teacher consistent", |run| run.summary.select.teacher_consistent),
        line("student wrong", |run| run.summary.select.student_wrong),
        line("kept", |run| run.summary.select.kept),
        line("steps of each arm", |run| run.summary.steps),
    ]
}

/// Settings that are not the same everywhere.
fn settings(sources: &[&Source]) -> Vec<Line<String>> {
    let of = |source: &&Source| -> BTreeMap<String, String> {
        let rows = |section: &Section| {
            let name = section.name.clone();
            section.rows.clone().into_iter().map(move |(key, value)| (format!("{name}.{key}"), value))
        };
        source.settings.iter().flat_map(rows).collect()
    };
    let all: Vec<BTreeMap<String, String>> = sources.iter().map(of).collect();
    let mut lines = Vec::new();
    for key in keys(all.iter().flat_map(|settings| settings.keys().map(String::as_str))) {
        let cells: Vec<Option<&String>> = all.iter().map(|settings| settings.get(key)).collect();
        if cells.iter().any(|cell| *cell != cells[0]) {
            let shown = |cell: Option<&String>| cell.map_or("\u{2013}".to_string(), String::clone);
            lines.push(Line { name: key.to_string(), cells: cells.into_iter().map(shown).collect() });
        }
    }
    lines
}

/// What the result of each later folder answers otherwise than that of the first which was asked the same.
fn flips(sources: &[&Source], wanted: usize) -> Result<Vec<Flips>> {
    let result = |source| levelled(source).and_then(|one| Some((one, one.asked.as_ref()?)));
    let mut flips = Vec::new();
    for (i, &after) in sources.iter().enumerate() {
        let Some((scored, new)) = result(after) else { continue };
        let earlier = sources[..i].iter().filter_map(|&source| Some((source, result(source)?)));
        let same =
            |(_, (one, old)): &(_, (&Scored, &Asked))| one.metric == scored.metric && old.ids == new.ids;
        let Some((before, (_, old))) = earlier.into_iter().find(same) else { continue };
        let groups = samples::changes(old, new, [&before.name, &after.name], wanted)?;
        flips.push(Flips { title: format!("From {} to {}", before.name, after.name), groups });
    }
    Ok(flips)
}
