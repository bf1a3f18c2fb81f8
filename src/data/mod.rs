//! What the loop reads and writes. Knows no model.
//!
//! ```text
//! images.rs   records.rs (reading)   append.rs (writing, resume)   files.rs (atomic writes, relative paths)
//! released.rs (the paper's layout)   metrics.rs (normalisation, scores)
//! ```

pub mod append;
pub mod files;
pub mod images;
pub mod metrics;
pub mod records;
pub mod released;
