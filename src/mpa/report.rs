//! One page that needs nothing else, of one or several folders: scores, funnel, curves, samples with their pictures, times, settings, and
//! what differs.
//!
//! `source.rs` finds out what a folder is and reads it, `scored.rs` its scores; `page.rs` says what is shown of one folder, `compare.rs` of several,
//! `samples.rs`, `curves.rs`, `times.rs` and `embed.rs` fill in the samples, drawings, times and pictures. All is put into `report.html.jinja`. Questions, answers and names are
//! text that nobody has checked: everything is escaped but what this module itself makes.

mod compare;
mod curves;
mod embed;
mod page;
mod samples;
mod scored;
mod source;
mod times;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::Serialize;

use crate::data::files;
use crate::error::{Error, Result};
use source::{Kind, Source};

const TEMPLATE: &str = include_str!("report/report.html.jinja");
const STYLE: &str = include_str!("report/report.css");

/// Samples shown of the parity set of one run, half as many of the other kinds; of several runs fewer each, so that the page stays small.
const SHOWN: usize = 8;

#[derive(Serialize)]
struct Page {
    css: Value,
    parts: Vec<page::Part>,
    comparison: Option<compare::Comparison>,
}

/// Writes `run_folder`/report.html from the other files of a run (`mpa::folder` lists them), but without times, so that the same run gives
/// the same bytes.
pub fn write(run_folder: &Path) -> Result<()> {
    let mut source = Source::open(run_folder)?;
    if let Kind::Run(run) = &mut source.kind {
        run.times = None;
    }
    files::write(&run_folder.join("report.html"), render(&[source], None)?.as_bytes())
}

/// Whether there is nothing at `out` that would be lost but an earlier report.
pub fn may_replace(out: &Path) -> bool {
    const MARK: &str = "<title>Model parity: ";
    let mut head = Vec::new();
    let read = |mut file: std::io::Take<File>| file.read_to_end(&mut head);
    !out.is_file()
        || File::open(out).map(|file| file.take(1024)).and_then(read).is_ok()
            && String::from_utf8_lossy(&head).contains(MARK)
}

/// Writes the page of these folders to `out`. Each is a run, an evaluation or an ablation; anything else is an error. `per_hour`: what an hour
/// of the device costs, for a column of costs.
pub fn write_all(folders: &[PathBuf], out: &Path, per_hour: Option<f64>) -> Result<()> {
    let mut sources: Vec<Source> =
        folders.iter().map(|folder| Source::open(folder)).collect::<Result<_>>()?;
    for (source, name) in sources.iter_mut().zip(scored::short(folders)) {
        source.name = name;
    }
    files::write(out, render(&sources, per_hour)?.as_bytes())
}

fn render(sources: &[Source], per_hour: Option<f64>) -> Result<String> {
    let wanted = (SHOWN / sources.len().max(1)).max(2);
    let page = Page {
        css: Value::from_safe_string(STYLE.to_string()),
        parts: sources.iter().map(|source| page::part(source, wanted, per_hour)).collect::<Result<_>>()?,
        comparison: compare::compare(sources, SHOWN / 2)?,
    };
    filled(&page).map_err(|e| Error::Failure(format!("report.html: {e:#}")))
}

fn filled(page: &Page) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let page = environment.render_str(TEMPLATE, Serde(page))?;
    // HTML has no way to write control characters.
    Ok(page.replace(|c: char| c.is_control() && !['\n', '\r', '\t'].contains(&c), "\u{fffd}"))
}
