//! How many cells there is memory for.
use std::fs;
use std::path::Path;

use super::grid::Grid;
use crate::error::{Error, Result};
use crate::models::hub;

/// What a model's keys and values may take of main memory (`models::engine`), and its pictures and activations beside them.
const BESIDE: u64 = 3 << 30;

/// Cells that fit into `available` bytes of main memory, of which a fifth is left alone; at most `threads`, which more would share, and at
/// least one.
pub fn jobs(cell: u64, available: u64, threads: usize) -> usize {
    let fit = (available - available / 5) / cell.max(1);
    usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, threads.max(1))
}

/// Bytes that one cell takes at its largest, an estimate: a stage has one model at a time, whose weights take up to three times what is stored
/// where they are unpacked, packed for products, or trained.
pub fn of_a_cell(grid: &Grid) -> Result<u64> {
    let mut most = 0;
    for cell in &grid.cells {
        for name in [&cell.config.models.teacher, &cell.config.models.student] {
            let folder = match grid.home.join(name) {
                folder if folder.is_dir() => folder,
                _ => hub::resolve(name)?,
            };
            most = most.max(weights(&folder)?);
        }
    }
    Ok(3 * most + BESIDE)
}

/// Bytes of a checkpoint's tensors.
fn weights(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            bytes += fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::jobs;

    #[test]
    fn as_many_as_fit_and_no_more_than_threads() {
        let gib = 1 << 30;
        // Four fifths of 20 GiB are 16.
        assert_eq!(jobs(4 * gib, 20 * gib, 64), 4);
        assert_eq!(jobs(4 * gib + 1, 20 * gib, 64), 3);
        assert_eq!(jobs(gib, 20 * gib, 2), 2);
        // One is tried even where it does not seem to fit, and with nothing known.
        assert_eq!(jobs(100 * gib, 20 * gib, 64), 1);
        assert_eq!(jobs(0, 0, 0), 1);
        assert_eq!(jobs(0, u64::MAX, 3), 3);
    }
}
