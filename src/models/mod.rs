//! Vision-language models. A family is a config, a weight-name map and a fixture over shared blocks.
//!
//!     image.rs -> vision.rs -> connector.rs -+
//!     prompt.rs ------------------------------+-> text.rs -> generate.rs
//!
//! `vlm.rs` puts the parts together; `config.rs`, `weights.rs` and `hub.rs` read a checkpoint folder.

pub mod config;
pub mod generate;
pub mod hub;
pub mod image;
pub mod prompt;
pub mod vlm;
pub mod weights;
