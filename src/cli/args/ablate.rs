use std::path::PathBuf;

use clap::Args;

/// Run a grid of loops that differ in a few settings, and compare their scores
///
/// Stages that cells agree in are computed once. Goes on where an earlier start stopped. Writes results.csv (a row a cell), summary.md and
/// summary.tex (mean and standard deviation over seeds), plot-scores.svg and, for each axis of numbers, plot-AXIS.svg. docs/ablation.md says more.
#[derive(Args)]
#[command(after_help = "\
Example of a grid:
  base = \"run.toml\"         # or the sections of a run's config, right here
  [grid]                    # each axis a list, or one value
  rule = [\"contains\", \"exact\", \"margin\", \"none\", \"random\", \"supervised\"]
  pictures = [500, 2000]
  rank = [8, 32]            # also: margin alpha targets lr epochs steps rehearsal rounds teacher teacher_int8 student
  \"level.batch\" = [16, 32] # any other key of a config
  seed = [0, 1, 2]
  [[cell]]                  # one more cell, by hand
  rule = \"none\"
  epochs = 3
  [supervised]              # for the rule supervised
  data = \"train.jsonl\"

Examples:
  mpa ablate grid.toml --out ablation --dry-run
  mpa ablate grid.toml --out ablation")]
pub struct Ablate {
    #[arg(value_name = "GRID.toml")]
    pub grid: PathBuf,
    /// Where stages and results go
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Cells at a time; changes nothing in the results. Without it: on a CPU as many as there are threads and memory for; on a GPU always 1
    #[arg(long, value_name = "N", value_parser = super::positive)]
    pub jobs: Option<usize>,
    /// Check the grid, list its cells and count their stages
    #[arg(long)]
    pub dry_run: bool,
}
