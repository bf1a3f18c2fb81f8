//! The Model Parity Aligner (arXiv 2509.16633) in one binary. Modules in data-flow order; imports go down this list only:
//! `cli` -> `demo` -> `mpa` -> `train`, `data` -> `models` -> `quant` -> `ops` -> `tensor` -> `error`.
//! Beside them `selftest` and `bench`, which check and time the ops, and whole models: `cli` -> `selftest` -> `ops`, `cli` -> `bench` -> `train`.

pub mod cli;
pub mod demo;
pub mod mpa;

pub mod data;
pub mod train;

pub mod bench;
pub mod models;
pub mod ops;
pub mod quant;
pub mod selftest;
pub mod tensor;

pub mod error;
pub mod random;
