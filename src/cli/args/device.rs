//! Commands that check and time a device.
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Compare every op on a GPU with the CPU, in f32 and bf16
///
/// Prints the worst error of each op and shape, what is allowed and why. Two runs must give the same bits. Exit code 1 if anything is off.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa selftest
  compute-sanitizer --tool racecheck mpa selftest --quick --filter attention")]
pub struct Selftest {
    /// Small shapes only
    #[arg(long)]
    pub quick: bool,
    /// Only ops whose name contains this
    #[arg(long, value_name = "NAME", default_value = "")]
    pub filter: String,
}

/// Measure
#[derive(Subcommand)]
pub enum Bench {
    Ops(BenchOps),
}

/// Time every op on named shapes of real models, against the copy bandwidth and the matrix ceiling that this device reaches
///
/// The median of 30 runs, each after the caches were overwritten, by the device's own clock. With --dtype f32: in f32.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa bench ops --csv ops.csv
  mpa bench ops --filter attention --backend cpu
  mpa bench ops --shapes --json")]
pub struct BenchOps {
    /// Only rows whose op or shape contains this, and the two ceilings
    #[arg(long, value_name = "NAME", default_value = "")]
    pub filter: String,
    /// Where the rows go as well (CSV)
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Cut the shapes down and run them once: shows that they run, measures nothing
    #[arg(long)]
    pub quick: bool,
    /// Run nothing: list the shapes, with the bytes and floating-point operations that they take
    #[arg(long)]
    pub shapes: bool,
}
