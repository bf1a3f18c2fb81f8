//! The Model Parity Aligner (arXiv 2509.16633) in one binary. Modules in data-flow order; imports go down this list only:
//! `cli` -> `demo` -> `mpa` -> `train`, `data` -> `models` -> `ops` -> `tensor` -> `error`.

pub mod cli;
pub mod demo;
pub mod mpa;

pub mod data;
pub mod train;

pub mod models;
pub mod ops;
pub mod tensor;

pub mod error;
pub mod random;
