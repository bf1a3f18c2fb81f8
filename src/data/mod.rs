//! What the loop reads and writes: pictures, records, scores.

pub mod images;
