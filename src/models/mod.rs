//! Vision-language models. A family is a config, a weight-name map and a fixture over shared blocks.
//!
//! ```text
//! image.rs -> vision.rs -> connector.rs -+
//! prompt.rs -----------------------------+-> text.rs -> engine/ (generate.rs: requests)
//! ```
//!
//! `vlm.rs` puts the parts together; `config.rs`, `weights.rs`, `adapter.rs` and `hub.rs` read a checkpoint folder;
//! `int8/` makes a model int8, in memory or as a folder;
//! `param.rs`, `weight.rs`, `linear.rs` and `norm.rs` are the blocks' bricks, each forward with its backward.

pub mod adapter;
pub mod config;
pub mod connector;
pub mod contents;
pub mod engine;
pub mod family;
pub mod generate;
pub mod hub;
pub mod image;
pub mod int8;
pub mod linear;
pub mod norm;
pub mod param;
pub mod prompt;
pub mod rope;
pub mod text;
pub mod vision;
pub mod vision_side;
pub mod vlm;
pub mod weight;
pub mod weights;
