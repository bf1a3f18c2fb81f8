//! report.html: a run in one page that needs nothing else: scores, funnel, loss curves, samples with their pictures, settings.
//!
//! What the page shows is gathered from the files of the run folder (`page.rs`, `samples.rs`, `curves.rs`, `embed.rs`) and filled into
//! `report.html.jinja`. Questions and answers are text that nobody has checked: everything is escaped but what this module itself makes.

mod curves;
mod embed;
mod page;
mod samples;

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};

use crate::data::files;
use crate::error::{Error, Result};

const TEMPLATE: &str = include_str!("report/report.html.jinja");

/// Writes `run_folder`/report.html from the other files of a run (`mpa::folder` lists them). The same files give the same bytes.
pub fn write(run_folder: &Path) -> Result<()> {
    let page = page::gather(run_folder)?;
    let html = render(&page).map_err(|e| Error::Failure(format!("report.html: {e:#}")))?;
    files::write(&run_folder.join("report.html"), html.as_bytes())
}

fn render(page: &page::Page) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.render_str(TEMPLATE, Serde(page))
}
