//! The demo: two tiny models, the pictures they were trained on, and one whole run of the loop on them.

pub mod checkpoint;
pub mod draw;
pub mod lessons;
pub mod questions;
pub mod scene;
pub mod vocabulary;
