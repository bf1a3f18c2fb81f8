//! int8 (W8A8): weights with a scale for each output channel, activations with one for each token (ops::quantize), both symmetric.
//!
//! ```text
//! calibration --see--> maxima of inputs --folds--> powers of two --matrix (rotated)--> int8 and scales
//! ```
//!
//! Which layers these are, and what comes before them, is the models' business (models/int8).

mod pack;
mod smooth;

pub use pack::{matrix, scales};
pub use smooth::{Fold, Folds, Group, Maxima, column_maxima, folds, see};
