//! The demo: two tiny models, the pictures they were trained on, and one whole run of the loop on them.
//!
//! ```text
//! scene.rs -> draw.rs, questions.rs -> lessons.rs, checkpoint.rs, vocabulary.rs   what examples/train_demo_models.rs makes the models of
//! inputs.rs -> mpa::run -> report.rs                                            the demo itself
//! ```

pub mod checkpoint;
pub mod draw;
pub mod inputs;
pub mod lessons;
pub mod questions;
pub mod report;
pub mod scene;
pub mod vocabulary;

use std::path::Path;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::mpa::engine::Engine;
use crate::mpa::progress::Progress;
use crate::mpa::run;
use inputs::Plan;
use report::Report;

/// Prepares a run folder at `out` (a temporary one without), runs the loop on it as on any other, and checks with its own knowledge of the
/// pictures what the loop could not know. Goes on where an earlier demo at `out` stopped.
pub fn run(
    engine: &dyn Engine,
    out: Option<&Path>,
    seed: u64,
    plan: Plan,
    progress: &Progress,
) -> Result<Report> {
    let begun = Instant::now();
    let temporary;
    let folder = match out {
        Some(folder) => folder,
        None => {
            temporary = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
            temporary.path()
        }
    };
    progress.note(&format!("drawing {} pictures, and {} held-out ones", plan.pictures, plan.held_out));
    inputs::prepare(folder, seed, plan)?;
    let drawing = begun.elapsed().as_secs_f64();
    let outcome = run::run(engine, &folder.join("config.toml"), None, progress)?;
    let mut report = Report::new(folder, seed, &outcome)?;
    report.seconds.insert("draw".to_string(), drawing);
    report.seconds.insert("total".to_string(), begun.elapsed().as_secs_f64());
    report.folder = out.map(|out| out.display().to_string());
    Ok(report)
}
