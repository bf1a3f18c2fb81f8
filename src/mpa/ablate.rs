//! A grid of loops that share what they can: `grid.rs` reads and checks it, `cell.rs` strings the stages of a cell together, `stage.rs`
//! gives each its folder, `table.rs`, `plot.rs` and `curve.rs` show what came of
//! it; `inputs.rs` notices what has changed since, `memory.rs` says how many cells fit.
//!
//! ```text
//! DIR/inputs -> the grid's folder     DIR/inputs.json     DIR/stages/KIND-HASH/     DIR/results.csv summary.md summary.tex plot-*.svg
//! ```
mod cell;
mod curve;
mod grid;
mod inputs;
mod memory;
mod pictures;
mod plot;
mod stage;
pub mod table;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::data::append::lock;
use crate::data::files;
use crate::error::{Error, Result};
use crate::mpa::engine::Engine;
use crate::mpa::folder;
use crate::mpa::progress::Progress;
use crate::tensor::main_memory;
use cell::{Chain, Context, Trained};
use grid::{Cell, Grid, Source};
use table::Row;

/// What came of a grid, or what would be done for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    #[serde(serialize_with = "files::lossy")]
    pub folder: PathBuf,
    pub axes: Vec<String>,
    pub rows: Vec<Row>,
    /// Different stages, by kind.
    pub stages: BTreeMap<String, usize>,
    /// Cells that failed.
    pub failed: usize,
}

/// Runs the grid at `path`, or goes on with it, `jobs` cells at a time (which changes nothing in the results; none: as many as there are
/// threads and main memory for); `dry`: only checks it, and counts stages.
pub fn run(
    engine: &dyn Engine,
    path: &Path,
    out: &Path,
    jobs: Option<usize>,
    dry: bool,
    progress: &Progress,
) -> Result<Outcome> {
    let grid = Grid::read(path)?;
    check(&grid)?;
    trainable(engine, path, &grid)?;
    // A supervised cell annotates none.
    let annotated = grid.cells.iter().filter(|cell| cell.source != Source::Supervised);
    let pictures: Option<Vec<usize>> = annotated.map(|cell| cell.pictures).collect();
    let home = fs::canonicalize(&grid.home).map_err(|e| Error::io(&grid.home, e))?;
    let inputs = if dry { home.clone() } else { out.join("inputs") };
    if !dry {
        folder::unmarked(out, "inputs", &["results.csv", "summary.md", "summary.tex", "plot-scores.svg"])?;
    }
    let _held = if dry { None } else { Some(prepare(out, &home)?) };
    if !dry {
        inputs::compare(out, &grid)?;
    }
    let jobs = if dry { 1 } else { side_by_side(&grid, jobs, progress)? };
    let context = Context {
        engine,
        progress,
        stages: stage::Stages::new(out.join("stages"), dry),
        inputs,
        pictures: pictures.and_then(|all| all.into_iter().max()),
        supervised: grid.supervised.clone(),
    };
    let rows = rows(&context, &grid.cells, jobs, dry);
    let mut stages = BTreeMap::new();
    for name in context.stages.names() {
        let kind = name.split_once('-').map_or(name.as_str(), |(kind, _)| kind);
        *stages.entry(kind.to_string()).or_default() += 1;
    }
    let failed = rows.iter().filter(|row| row.error.is_some()).count();
    let outcome = Outcome { folder: out.to_path_buf(), axes: grid.axes, rows, stages, failed };
    if !dry {
        write(&outcome)?;
    }
    Ok(outcome)
}

/// Every file that a cell starts from is there.
fn check(grid: &Grid) -> Result<()> {
    for cell in &grid.cells {
        let config = &cell.config;
        let questions = config.evaluate.iter().flat_map(|evaluate| evaluate.questions.paths());
        for name in config.annotate.images.paths().into_iter().chain(questions) {
            let path = grid.home.join(name);
            if !path.exists() {
                return Err(Error::input(&path, format!("is not there, but cell {} needs it", cell.name)));
            }
        }
        for name in [&config.models.teacher, &config.models.student] {
            if !grid.home.join(name).is_dir() {
                crate::models::hub::resolve(name)?;
            }
        }
    }
    Ok(())
}

/// Every cell's student can be trained as it says; what is wrong would be met only after the teacher's work.
fn trainable(engine: &dyn Engine, path: &Path, grid: &Grid) -> Result<()> {
    let mut seen = Vec::new();
    for cell in &grid.cells {
        let (models, level) = (&cell.config.models, &cell.config.level);
        let asked = (&models.student, models.min_pixels, models.max_pixels, &level.targets, &level.full);
        if seen.contains(&asked) {
            continue;
        }
        seen.push(asked);
        let folder = match grid.home.join(&models.student) {
            folder if folder.is_dir() => folder,
            _ => crate::models::hub::resolve(&models.student)?,
        };
        let pixels = models.pixels_of(&folder)?;
        engine.check(&folder, pixels, &level.trainable()).map_err(|e| match e {
            Error::Usage(what) => {
                Error::input(path, format!("cell {}: `{}`: {what}", cell.name, level.trained_key()))
            }
            other => other,
        })?;
    }
    Ok(())
}

/// Makes the folder, and the link to what the grid's paths are relative to; the lock holds while the file lives.
fn prepare(out: &Path, home: &Path) -> Result<File> {
    fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let held = File::open(out).map_err(|e| Error::io(out, e))?;
    lock(&held, out)?;
    let link = out.join("inputs");
    if link.symlink_metadata().is_err() {
        folder::symlink(home, &link).map_err(|e| Error::io(&link, e))?;
    } else if fs::canonicalize(&link).map_err(|e| Error::io(&link, e))? != home {
        let what = format!("does not lead to {}: take another --out", home.display());
        return Err(Error::input(&link, what));
    }
    // There before anything is looked for in a folder around this one.
    let mark = out.join(inputs::NOTE);
    if !mark.exists() {
        files::write(&mark, b"{}\n")?;
    }
    Ok(held)
}

/// How many cells at a time: `asked`, with a warning if they do not seem to fit.
fn side_by_side(grid: &Grid, asked: Option<usize>, progress: &Progress) -> Result<usize> {
    let cell = memory::of_a_cell(grid)?;
    let available = main_memory().map_or(0, |(_, available)| available);
    let fit = memory::jobs(cell, available, asked.unwrap_or_else(rayon::current_num_threads));
    let jobs = asked.unwrap_or(fit).min(grid.cells.len());
    let shown = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let memory = format!("{} of memory are available, a cell takes up to {}", shown(available), shown(cell));
    if jobs > fit.max(1) {
        progress.warn(&format!("{jobs} cells at a time: {memory}"));
    } else {
        progress.note(&format!("{jobs} cells at a time: {memory}"));
    }
    Ok(jobs)
}

/// The rows of all cells in their order, worked out by `jobs` threads.
fn rows(context: &Context<'_>, cells: &[Cell], jobs: usize, dry: bool) -> Vec<Row> {
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let worker = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = cells.get(i) else { return };
            let row = row(context, cell, dry);
            if let Some(why) = &row.error {
                context.progress.warn(&format!("cell {}: {why}", cell.name));
            } else if !dry {
                let score = row.after.map_or(String::new(), |score| format!(" accuracy {score:.4}"));
                context.progress.note(&format!("cell {} of {}:{score}", cell.name, cells.len()));
            }
            rows.lock().unwrap_or_else(PoisonError::into_inner).insert(i, row);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.min(cells.len()) {
            scope.spawn(worker);
        }
        worker();
    });
    rows.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

fn row(context: &Context<'_>, cell: &Cell, dry: bool) -> Row {
    let blank = Row { cell: cell.name.clone(), values: cell.values.clone(), ..Row::default() };
    let filled = || -> Result<Row> {
        let chain = context.chain(cell)?;
        if dry { Ok(blank.clone()) } else { fill(context, blank.clone(), &chain) }
    };
    filled().unwrap_or_else(|e| Row { error: Some(e.to_string()), ..blank.clone() })
}

fn fill(context: &Context<'_>, row: Row, chain: &Chain) -> Result<Row> {
    let trained = |name: &str| -> Result<Trained> {
        let path = context.stages.folder(name).join("trained.json");
        serde_json::from_value(stage::read(&path)?).map_err(|e| Error::input(&path, e.to_string()))
    };
    let (teacher, before, after) = (
        context.accuracy(&chain.teacher)?,
        context.accuracy(&chain.before)?,
        context.accuracy(&chain.after)?,
    );
    let Trained { pseudo, parity, samples, steps } = trained(&chain.last)?;
    Ok(Row {
        pseudo,
        parity,
        samples,
        steps,
        teacher: Some(teacher),
        before: Some(before),
        after: Some(after),
        gap_recovered: (teacher > before).then(|| (after - before) / (teacher - before)),
        seconds: chain.all.iter().map(|name| context.stages.seconds(name)).sum(),
        ..row
    })
}

fn write(outcome: &Outcome) -> Result<()> {
    let file = |name: &str| outcome.folder.join(name);
    let groups = table::groups(&outcome.axes, &outcome.rows);
    files::write(&file("results.csv"), table::csv(&outcome.axes, &outcome.rows).as_bytes())?;
    files::write(&file("summary.md"), table::markdown(&outcome.axes, &groups).as_bytes())?;
    files::write(&file("summary.tex"), table::latex(&outcome.axes, &groups).as_bytes())?;
    for axis in curve::axes(&outcome.axes, &groups) {
        let drawn = curve::scores(&outcome.axes, &axis, &groups)?;
        files::write(&file(&format!("plot-{axis}.svg")), drawn.as_bytes())?;
    }
    files::write(&file("plot-scores.svg"), plot::scores(&outcome.axes, &groups)?.as_bytes())
}
