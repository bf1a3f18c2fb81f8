//! What a grid starts from, as it was (DIR/inputs.json): stages know their inputs by name, so one that has changed since must be noticed.
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::stage;
use crate::data::files;
use crate::data::images;
use crate::error::{Error, Result};
use crate::models::hub;

/// By which `images::is_output` knows the folder of a grid.
pub const NOTE: &str = "inputs.json";

/// Folders in folders that are looked into.
const DEPTH: usize = 16;

/// Of a file, or of all files of a folder; contents are not read, for they may be hundreds of gigabytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Seen {
    files: u64,
    bytes: u64,
    /// The latest change, in milliseconds since 1970.
    modified: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { files, bytes, modified } = self;
        write!(f, "{files} files of {bytes} bytes, changed at {}.{:03}", modified / 1000, modified % 1000)
    }
}

/// An error if an input is not what it was when the grid was started; new ones are noted.
pub fn compare(out: &Path, grid: &Grid) -> Result<()> {
    let note = out.join(NOTE);
    let mut all: BTreeMap<String, Seen> =
        serde_json::from_value(stage::read(&note)?).map_err(|e| Error::input(&note, e.to_string()))?;
    for name in names(grid) {
        let path = match grid.home.join(name) {
            path if path.exists() => path,
            _ => hub::resolve(name)?,
        };
        let mut now = Seen::default();
        look(&path, &mut Vec::new(), &mut now)?;
        let then = *all.entry(name.to_string()).or_insert(now);
        if then != now {
            let what = format!(
                "has changed since this grid was started ({then} then, {now} now), and what was computed from it is in {}: take another \
                 --out, or remove that folder; or, if it is still the same data, remove {}",
                out.join("stages").display(),
                note.display()
            );
            return Err(Error::input(&path, what));
        }
    }
    files::write_json(&note, &all)
}

/// As in the configs.
fn names(grid: &Grid) -> Vec<&str> {
    let mut names: Vec<&str> = grid.supervised.as_deref().into_iter().collect();
    for cell in &grid.cells {
        let (config, models) = (&cell.config, &cell.config.models);
        names.extend([models.teacher.as_str(), &models.student]);
        names.extend(config.annotate.images.paths());
        names.extend(config.evaluate.iter().flat_map(|evaluate| evaluate.questions.paths()));
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// Links are followed as `images::list` does: not into a folder that is being looked into, and past those that lead nowhere.
fn look(path: &Path, above: &mut Vec<PathBuf>, seen: &mut Seen) -> Result<()> {
    let data = match fs::metadata(path) {
        Err(_) if !above.is_empty() && path.is_symlink() => return Ok(()),
        data => data.map_err(|e| Error::io(path, e))?,
    };
    if data.is_dir() {
        let real = path.canonicalize().map_err(|e| Error::io(path, e))?;
        let inside = !above.is_empty() && images::is_output(path);
        if above.len() == DEPTH || above.contains(&real) || inside {
            return Ok(());
        }
        above.push(real);
        for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
            look(&entry.map_err(|e| Error::io(path, e))?.path(), above, seen)?;
        }
        above.pop();
        return Ok(());
    }
    let modified = data.modified().map_err(|e| Error::io(path, e))?;
    let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    seen.files += 1;
    seen.bytes += data.len();
    seen.modified = seen.modified.max(modified);
    Ok(())
}
