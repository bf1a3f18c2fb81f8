//! The arithmetic of sizes and tiles, apart from any pixel. Divisions are in f64 and cut off, in the reference's order: the results
//! decide how many tokens a picture takes.

use super::{Cut, ImageProcessor, Layout, Target};
use crate::error::Result;

/// The longest side that a resize to a longest edge leaves, whatever the settings say.
const MAX_SIDE: usize = 4096;

/// What becomes of a picture of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// (width, height) after the resize to the longest edge; the picture's own without it.
    pub first: (usize, usize),
    /// (width, height) from which tiles are cut; the one tile's when the picture is not split.
    pub second: (usize, usize),
    /// Tiles in a column and in a row; 0 x 0 when the picture is not split. Tokens of one that is left whole.
    pub rows: usize,
    pub cols: usize,
}

impl ImageProcessor {
    /// Sizes and grid for a picture of width x height, both at least 1.
    pub fn plan(&self, width: usize, height: usize) -> Result<Plan> {
        match &self.layout {
            Layout::Tiles(cut) => Ok(cut.plan(width, height)),
            Layout::Whole(bounds) => bounds.plan(width, height),
        }
    }
}

impl Cut {
    /// Of a square with the longest sides there are.
    pub(super) fn most_pixels(&self) -> usize {
        let plan = self.plan(MAX_SIDE, MAX_SIDE);
        (plan.rows * plan.cols + 1) * self.tile * self.tile
    }

    fn plan(&self, width: usize, height: usize) -> Plan {
        let tile = self.tile;
        let first = match self.resize_to {
            None => (width, height),
            Some(Target::Exact(width, height)) => (width, height),
            Some(Target::LongestEdge(edge)) => below_max_side(longest_edge(width, height, edge)),
        };
        if !self.split {
            return Plan { first, second: (tile, tile), rows: 0, cols: 0 };
        }
        let second = tile_multiples(first, tile);
        let (cols, rows) = (second.0 / tile, second.1 / tile);
        let (rows, cols) = if rows * cols == 1 { (0, 0) } else { (rows, cols) };
        Plan { first, second, rows, cols }
    }
}

/// The longer side made `edge`, the other in proportion and even.
fn longest_edge(width: usize, height: usize, edge: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    let even = |side: f64| ((side as usize).next_multiple_of(2)).max(1);
    if width >= height { (edge, even(edge as f64 / ratio)) } else { (even(edge as f64 * ratio), edge) }
}

fn below_max_side((width, height): (usize, usize)) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    let (w, h) = if width >= height && width > MAX_SIDE {
        (MAX_SIDE, (MAX_SIDE as f64 / ratio) as usize)
    } else if height > width && height > MAX_SIDE {
        ((MAX_SIDE as f64 * ratio) as usize, MAX_SIDE)
    } else {
        (width, height)
    };
    (w.max(1), h.max(1))
}

/// The longer side rounded up to a multiple of the tile, the other in proportion and then rounded up too.
fn tile_multiples((width, height): (usize, usize), tile: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    let up = |side: usize| side.next_multiple_of(tile).max(tile);
    if width >= height {
        let width = up(width);
        (width, up((width as f64 / ratio) as usize))
    } else {
        let height = up(height);
        (up((height as f64 * ratio) as usize), height)
    }
}
