//! The benchmarks: readers, metrics, and the commands on them.

#[path = "../common/memory.rs"]
mod memory;

mod commands;
mod metrics;
mod readers;
mod references;
