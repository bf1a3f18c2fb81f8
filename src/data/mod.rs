//! What the loop reads and writes. Knows no model.
//!
//! ```text
//! images.rs   records.rs (reading)   append.rs (writing, resume)   files.rs (atomic writes, relative paths)
//! benchmarks/ (official layouts)   released.rs (the paper's layout)
//! metrics.rs (normalisation, scores)   official.rs (the benchmarks' metrics)   evalai.rs, python.rs (what these take text for)
//! ```

pub mod append;
pub mod benchmarks;
pub mod evalai;
pub mod files;
pub mod images;
pub mod metrics;
pub mod official;
pub mod python;
pub mod records;
pub mod released;
