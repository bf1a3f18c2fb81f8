//! A grid file: a base config, the axes that vary, and the cells that come of it. Everything is checked before anything runs.
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::data::files;
use crate::error::{Error, Result};
use crate::mpa::config::Config;
use crate::mpa::prompts;
use crate::mpa::select::Rule;

/// Short names of axes, and what of a config they set. An axis may also be the dotted name of any key of a config.
const SHORT: [(&str, &str); 12] = [
    ("margin", "select.margin"),
    ("rank", "level.rank"),
    ("alpha", "level.alpha"),
    ("targets", "level.targets"),
    ("lr", "level.lr"),
    ("epochs", "level.epochs"),
    ("steps", "level.steps"),
    ("rehearsal", "level.rehearsal"),
    ("teacher", "models.teacher"),
    ("student", "models.student"),
    ("teacher_int8", "models.teacher_int8"),
    ("seed", "seed"),
];
/// Axes that are no key of a config.
const OWN: [&str; 3] = ["rule", "pictures", "rounds"];
const SECTIONS: [&str; 7] = ["seed", "models", "annotate", "predict", "select", "level", "evaluate"];
/// Paths of a base file, which are relative to it; of a benchmark those in the table that stands there.
const PATHS: [(&str, &str); 5] = [
    ("models", "teacher"),
    ("models", "student"),
    ("annotate", "images"),
    ("annotate", "task"),
    ("evaluate", "questions"),
];
const PARTS: [&str; 3] = ["annotations", "questions", "pictures"];
/// A product with more cells is taken for a slip.
const MAX_CELLS: usize = 10_000;

/// What a student is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The parity set by the cell's rule, and rehearsal samples.
    Parity,
    /// All pseudo-labels.
    All,
    /// As many pseudo-labels as the parity set has, at random.
    Random,
    /// Labelled samples.
    Supervised,
}

#[derive(Clone, Debug)]
pub struct Cell {
    pub name: String,
    /// The axes' values as they are shown, in the order of `Grid::axes`; empty where a cell does not set one.
    pub values: Vec<String>,
    pub source: Source,
    /// Pictures that are annotated; all without.
    pub pictures: Option<usize>,
    pub rounds: usize,
    pub config: Config,
}

#[derive(Clone, Debug)]
pub struct Grid {
    /// What all paths are relative to.
    pub home: PathBuf,
    pub axes: Vec<String>,
    pub cells: Vec<Cell>,
    pub supervised: Option<String>,
}

impl Grid {
    /// Reads and checks a grid and all of its cells.
    pub fn read(path: &Path) -> Result<Grid> {
        let mut table = parse(path)?;
        let home = files::folder_of(path).to_path_buf();
        let axes = axes(path, table.remove("grid"))?;
        let extra = hand_picked(path, table.remove("cell"))?;
        let supervised = supervised(path, &home, table.remove("supervised"))?;
        let base = base(path, &home, table)?;
        let count = axes.iter().try_fold(1_usize, |n, (_, list)| n.checked_mul(list.len()));
        if count.is_none_or(|n| n > MAX_CELLS) {
            return Err(Error::input(
                path,
                format!("`grid`: the product of its axes has over {MAX_CELLS} cells"),
            ));
        }
        let mut names: Vec<String> = axes.iter().map(|(name, _)| name.clone()).collect();
        for key in extra.iter().flat_map(Table::keys) {
            if !names.contains(key) {
                names.push(key.clone());
            }
        }
        let product = if axes.is_empty() { Vec::new() } else { product(&axes) };
        let mut cells = Vec::new();
        for (i, chosen) in product.iter().chain(&extra).enumerate() {
            let cell = cell(&base, &home, &names, chosen, i + 1).map_err(|what| {
                Error::input(path, format!("cell {} ({}): {what}", i + 1, describe(chosen)))
            })?;
            cells.push(cell);
        }
        if cells.is_empty() {
            return Err(Error::input(path, "no cells: expected axes in [grid], or [[cell]] tables"));
        }
        let wanted = cells.iter().any(|cell| cell.source == Source::Supervised);
        match (wanted, &supervised) {
            (true, None) => Err(Error::input(path, "rule \"supervised\": expected [supervised] with `data`")),
            (false, Some(_)) => Err(Error::input(path, "`supervised`: no cell has rule \"supervised\"")),
            _ => Ok(Grid { home, axes: names, cells, supervised }),
        }
    }
}

fn parse(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    text.parse::<Table>().map_err(|e| match e.span() {
        Some(span) => {
            let line = 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
            Error::line(path, line, e.message())
        }
        None => Error::input(path, e.message()),
    })
}

/// The base config as a table: the file that `base` names, and over it the grid file's own sections.
fn base(path: &Path, home: &Path, mut table: Table) -> Result<Table> {
    let mut all = match table.remove("base") {
        None => Table::new(),
        Some(Value::String(name)) => {
            let mut all = parse(&home.join(&name))?;
            let folder = Path::new(&name).parent().unwrap_or(Path::new(""));
            for (section, key) in PATHS {
                match all.get_mut(section).and_then(|section| section.get_mut(key)) {
                    Some(Value::Table(part)) => {
                        for (_, value) in part.iter_mut().filter(|(key, _)| PARTS.contains(&key.as_str())) {
                            below(folder, home, value);
                        }
                    }
                    Some(Value::String(task)) if key == "task" && prompts::named(task).is_some() => {}
                    Some(value) => below(folder, home, value),
                    None => {}
                }
            }
            all.remove("out");
            all
        }
        Some(other) => return Err(Error::input(path, format!("`base`: expected a file name, got {other}"))),
    };
    for (key, value) in table {
        if !SECTIONS.contains(&key.as_str()) {
            let expected = SECTIONS.join(", ");
            let what = format!("unknown key `{key}`: expected base, grid, cell, supervised, {expected}");
            return Err(Error::input(path, what));
        }
        match (all.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => under.extend(over),
            (_, value) => {
                all.insert(key, value);
            }
        }
    }
    Ok(all)
}

/// Makes a path that is relative to `folder` relative to `home`; what is not there is a hub id, or told later.
fn below(folder: &Path, home: &Path, value: &mut Value) {
    if let Value::String(path) = value
        && home.join(folder).join(&*path).exists()
        && let Some(joined) = folder.join(&*path).to_str()
    {
        *path = joined.to_string();
    }
}

fn target(axis: &str) -> Option<&str> {
    if OWN.contains(&axis) {
        return Some(axis);
    }
    SHORT.iter().find(|(short, _)| *short == axis).map(|(_, key)| *key).or(axis.contains('.').then_some(axis))
}

fn known(path: &Path, place: &str, axis: &str) -> Result<()> {
    if target(axis) == Some("level.arms") {
        let what = format!("`{place}.{axis}`: a cell is one arm, which `rule` and `rehearsal` choose");
        return Err(Error::input(path, what));
    }
    if target(axis).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = OWN.into_iter().chain(SHORT.map(|(short, _)| short)).collect();
    let what = format!(
        "`{place}.{axis}`: unknown axis; expected {}, or a config's key such as \"level.batch\"",
        names.join(", ")
    );
    Err(Error::input(path, what))
}

fn axes(path: &Path, grid: Option<Value>) -> Result<Vec<(String, Vec<Value>)>> {
    let table = match grid {
        None => return Ok(Vec::new()),
        Some(Value::Table(table)) => table,
        Some(other) => return Err(Error::input(path, format!("`grid`: expected a table, got {other}"))),
    };
    let mut axes = Vec::new();
    for (axis, value) in table {
        known(path, "grid", &axis)?;
        let list = match value {
            Value::Array(list) => list,
            one => vec![one],
        };
        if list.is_empty() {
            return Err(Error::input(
                path,
                format!("`grid.{axis}`: expected at least one value, got an empty list"),
            ));
        }
        if let Some(twice) = list.iter().enumerate().find(|(i, value)| list[..*i].contains(value)) {
            return Err(Error::input(path, format!("`grid.{axis}`: {} is there twice", twice.1)));
        }
        axes.push((axis, list));
    }
    // The seed last, so that the cells of a group follow each other.
    axes.sort_by_key(|(axis, _)| axis == "seed");
    Ok(axes)
}

fn hand_picked(path: &Path, cells: Option<Value>) -> Result<Vec<Table>> {
    let list = match cells {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(Error::input(path, format!("`cell`: expected [[cell]], got {other}"))),
    };
    let table = |value| match value {
        Value::Table(table) => table.keys().try_for_each(|key| known(path, "cell", key)).map(|()| table),
        other => Err(Error::input(path, format!("`cell`: expected [[cell]], got {other}"))),
    };
    list.into_iter().map(table).collect()
}

fn supervised(path: &Path, home: &Path, section: Option<Value>) -> Result<Option<String>> {
    let Some(section) = section else { return Ok(None) };
    let data =
        section.as_table().filter(|t| t.len() == 1).and_then(|t| t.get("data")).and_then(Value::as_str);
    let data = data.ok_or_else(|| {
        Error::input(path, "`supervised`: expected one key, `data`, with the name of a JSONL file")
    })?;
    if !home.join(data).is_file() {
        return Err(Error::input(path, format!("`supervised.data`: {data} is not there")));
    }
    Ok(Some(data.to_string()))
}

fn product(axes: &[(String, Vec<Value>)]) -> Vec<Table> {
    let mut all = vec![Table::new()];
    for (axis, list) in axes {
        let with = |table: &Table, value: &Value| {
            let mut table = table.clone();
            table.insert(axis.clone(), value.clone());
            table
        };
        all = all.iter().flat_map(|table| list.iter().map(move |value| with(table, value))).collect();
    }
    all
}

fn describe(chosen: &Table) -> String {
    let pairs: Vec<String> = chosen.iter().map(|(axis, value)| format!("{axis} = {value}")).collect();
    pairs.join(", ")
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Two names of one key would hide each other. `rule` has values that are no rule of a config's.
fn once(chosen: &Table) -> Result<(), String> {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (axis, value) in chosen {
        let selects = axis == "rule" && matches!(value.as_str(), Some("contains" | "exact" | "margin"));
        let key = if selects { "select.rule" } else { target(axis).unwrap_or(axis) };
        if let Some((other, _)) = seen.iter().find(|(_, earlier)| *earlier == key) {
            return Err(format!("`{other}` and `{axis}` set the same, expected one of them"));
        }
        seen.push((axis, key));
    }
    Ok(())
}

fn cell(base: &Table, home: &Path, axes: &[String], chosen: &Table, number: usize) -> Result<Cell, String> {
    once(chosen)?;
    let (mut table, mut source, mut pictures, mut rounds) = (base.clone(), Source::Parity, None, 1);
    for (axis, value) in chosen {
        let wrong = |expected: &str| format!("`{axis}`: expected {expected}, got {value}");
        let count = || value.as_integer().and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= 1);
        match axis.as_str() {
            "rule" => {
                let name = value.as_str().unwrap_or_default();
                source = match name {
                    "none" => Source::All,
                    "random" => Source::Random,
                    "supervised" => Source::Supervised,
                    "contains" | "exact" | "margin" => {
                        set(&mut table, "select.rule", value.clone())?;
                        Source::Parity
                    }
                    _ => return Err(wrong("contains, exact, margin, none, random or supervised")),
                };
            }
            "pictures" => pictures = Some(count().ok_or_else(|| wrong("a number of at least 1"))?),
            "rounds" => rounds = count().ok_or_else(|| wrong("a number of at least 1"))?,
            "targets" if value.is_str() => {
                set(&mut table, "level.targets", Value::Array(vec![value.clone()]))?
            }
            _ => set(&mut table, target(axis).unwrap_or(axis), value.clone())?,
        }
    }
    let sets = |key: &str| chosen.keys().any(|axis| target(axis) == Some(key));
    if sets("level.epochs")
        && !sets("level.steps")
        && let Some(level) = table.get_mut("level").and_then(Value::as_table_mut)
    {
        // The base's steps would leave them without effect.
        level.remove("steps");
    }
    let config = Config::of(table, home)?;
    if config.evaluate.is_none() {
        return Err("`evaluate.questions` is missing: a grid compares scores".to_string());
    }
    if chosen.contains_key("margin")
        && config.select.rule != Rule::Margin
        && source != Source::Supervised
        && !chosen.contains_key("rule")
    {
        return Err(format!("`margin` is of the rule margin, and the rule is {:?}", config.select.rule)
            .to_lowercase());
    }
    let values = axes.iter().map(|axis| chosen.get(axis).map_or(String::new(), shown)).collect();
    Ok(Cell { name: format!("{number:03}"), values, source, pictures, rounds, config })
}

/// Sets a dotted key.
fn set(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_string(), value);
            Ok(())
        }
        Some((section, key)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let inner = inner.as_table_mut().ok_or_else(|| format!("`{section}`: expected a table"))?;
            set(inner, key, value)
        }
    }
}
