//! Pictures: reading them, resampling as Pillow does, tiles as transformers makes them.

mod files;
mod memory;
mod process;
