//! Pictures: reading them, resampling as Pillow does, tiles as transformers makes them.

mod files;
#[path = "../common/memory.rs"]
mod memory;
mod process;
