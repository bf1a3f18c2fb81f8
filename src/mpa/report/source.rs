//! What a folder is, and what of it is there: a run (a demo's too), an evaluation, or an ablation.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::Table;

use super::scored::{self, Scored};
use crate::data::records::Reader;
use crate::error::{Error, Result};
use crate::mpa::answer::Tally;
use crate::mpa::folder::STARTED;
use crate::mpa::run::{Summary, Times};

pub struct Source {
    /// How the page calls it.
    pub name: String,
    pub path: PathBuf,
    pub kind: Kind,
    pub settings: Vec<Section>,
    pub scored: Vec<Scored>,
}

pub enum Kind {
    Run(Box<Run>),
    Evaluation,
    /// summary.md, and the drawings with what they are of: the scores of all groups first, then against each axis of numbers.
    Ablation {
        table: Vec<Vec<String>>,
        plots: Vec<(String, Vec<u8>)>,
    },
}

pub struct Run {
    /// Of a run that is not finished: what its files say so far.
    pub summary: Summary,
    /// Files of stages that are not there.
    pub missing: Vec<String>,
    pub times: Option<Times>,
    /// Samples were kept by how likely the label is to teacher and student, whatever these answer.
    pub by_margin: bool,
}

#[derive(Clone, Serialize)]
pub struct Section {
    pub name: String,
    pub rows: Vec<(String, String)>,
}

impl Source {
    pub fn open(folder: &Path) -> Result<Source> {
        let (name, path) = (folder.display().to_string(), folder.to_path_buf());
        let has = |file: &str| folder.join(file).is_file();
        if !folder.is_dir() {
            return Err(Error::input(folder, "no such folder"));
        }
        if has(STARTED) {
            let config = read_config(&folder.join(STARTED))?;
            let run = Run::read(folder, &config)?;
            let scored = scored::of_run(folder, &run.summary, &config)?;
            let mut settings = sections(&config);
            // By which models of one name are told apart.
            if has("inputs/contents.json") {
                let rows = plain_section(&json(&folder.join("inputs/contents.json"))?);
                let named = rows.into_iter().map(|rows| Section { name: "inputs".to_string(), ..rows });
                settings.extend(named);
            }
            return Ok(Source { name, path, kind: Kind::Run(Box::new(run)), settings, scored });
        }
        if has("scores.json") {
            let settings = match has("settings.json") {
                true => plain_section(&json(&folder.join("settings.json"))?),
                false => Vec::new(),
            };
            let scored = vec![scored::of_evaluation(folder, &settings)?];
            return Ok(Source { name, path, kind: Kind::Evaluation, settings, scored });
        }
        if has("summary.md") && has("results.csv") {
            let text = text(&folder.join("summary.md"))?;
            let kind = Kind::Ablation { table: pipes(&text), plots: plots(folder)? };
            return Ok(Source { name, path, kind, settings: Vec::new(), scored: Vec::new() });
        }
        let what = match (has("predictions.jsonl"), folder.join("stages").is_dir()) {
            (true, _) => "an evaluation that is not finished: scores.json is missing",
            (_, true) => "an ablation that is not finished: results.csv and summary.md are missing",
            _ => {
                "expected the folder of a run (config.started.toml), an evaluation (scores.json) or an ablation (results.csv); it has none \
                 of these files"
            }
        };
        Err(Error::input(folder, what))
    }

    pub fn run(&self) -> Option<&Run> {
        match &self.kind {
            Kind::Run(run) => Some(run),
            _ => None,
        }
    }
}

impl Run {
    fn read(folder: &Path, config: &Table) -> Result<Run> {
        let (summary, missing) = match folder.join("summary.json").is_file() {
            true => (json(&folder.join("summary.json"))?, Vec::new()),
            false => (so_far(folder)?, missing(folder, config)),
        };
        let rule = config.get("select").and_then(|select| select.get("rule")).and_then(toml::Value::as_str);
        Ok(Run { summary, missing, times: Times::read(folder)?, by_margin: rule == Some("margin") })
    }
}

/// The files of a whole run that are not there, in the order of the stages.
fn missing(folder: &Path, config: &Table) -> Vec<String> {
    let evaluated = config.contains_key("evaluate");
    let arms = config.get("level").and_then(|level| level.get("arms")).and_then(toml::Value::as_array);
    let arms = arms.into_iter().flatten().filter_map(toml::Value::as_str);
    let score = |who: &str| evaluated.then(|| format!("evaluate/{who}/scores.json"));
    let mut files: Vec<Option<String>> = vec![Some("annotate.jsonl".into())];
    for who in ["teacher", "student"] {
        files.extend([Some(format!("{who}.jsonl")), score(who)]);
    }
    files.push(Some("select.json".into()));
    for arm in arms {
        files.extend([Some(format!("level/{arm}/loss.jsonl")), score(arm)]);
    }
    files.push(Some("summary.json".into()));
    files.into_iter().flatten().filter(|file| !folder.join(file).exists()).collect()
}

/// The summary of a run that has none yet.
fn so_far(folder: &Path) -> Result<Summary> {
    let mut summary = Summary::default();
    let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    if let Some(path) = file("annotate.jsonl") {
        let tally = Tally::of(&path)?;
        (summary.pseudo_labels, summary.rejected) = (tally.records, tally.rejected);
    }
    if let Some(path) = file("select.json") {
        summary.select = json(&path)?;
    }
    for (who, ..) in scored::WHO {
        if let Some(path) = file(&format!("evaluate/{who}/scores.json")) {
            summary.scores.insert(who.to_string(), json(&path)?);
        }
    }
    Ok(summary)
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

pub fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&text(path)?).map_err(|e| Error::input(path, e.to_string()))
}

fn read_config(path: &Path) -> Result<Table> {
    text(path)?.parse().map_err(|e: toml::de::Error| Error::input(path, e.to_string()))
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

/// settings.json of an evaluation.
fn plain_section(settings: &BTreeMap<String, Value>) -> Vec<Section> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let rows = settings.iter().filter(|(_, value)| !value.is_null());
    let rows = rows.map(|(key, value)| (key.clone(), plain(value))).collect();
    vec![Section { name: "evaluation".to_string(), rows }]
}

/// The rows of a Markdown table as `ablate` writes it, without the rule below its head.
fn pipes(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_start_matches('|').replace("\\|", "\u{0}");
        let line = line.strip_suffix('|').unwrap_or(&line);
        line.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
    };
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    rows.map(cells).collect()
}

/// The files plot-NAME.svg of an ablation, plot-scores.svg first.
fn plots(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::io(folder, e))?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_prefix("plot-").and_then(|n| n.strip_suffix(".svg")).map(str::to_string));
    }
    names.sort_by_key(|name| (name != "scores", name.clone()));
    let read = |name: String| {
        let path = folder.join(format!("plot-{name}.svg"));
        fs::read(&path).map(|bytes| (name, bytes)).map_err(|e| Error::io(&path, e))
    };
    names.into_iter().map(read).collect()
}

/// How many records a file has; none if it is not there.
pub fn records(path: &Path) -> Result<Option<usize>> {
    if !path.exists() {
        return Ok(None);
    }
    Reader::open_growing(path)?.try_fold(0, |count, record| record.map(|_| count + 1)).map(Some)
}
