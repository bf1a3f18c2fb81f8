use crate::error::{Error, Result};
use crate::mpa::ablate::{self, Outcome, table};
use crate::mpa::progress::Progress;
use crate::tensor::Device;

use super::{Output, args, compute};

pub fn run(args: &args::Ablate, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let engine = compute::native(compute, progress)?;
    // Cells on one GPU share its stream: while one keeps its launches as a graph, the launches of another would become part of it.
    let jobs = match (&engine.0.device, args.jobs) {
        (Device::Cpu, jobs) => jobs,
        (Device::Cuda(_), None | Some(1)) => Some(1),
        (Device::Cuda(_), Some(n)) => {
            return Err(Error::Usage(format!(
                "--jobs {n}: expected 1 on a GPU, whose cells run one after the other"
            )));
        }
    };
    let outcome = ablate::run(&engine, &args.grid, &args.out, jobs, args.dry_run, progress)?;
    let failed =
        (outcome.failed > 0).then(|| format!("{} of {} cells failed", outcome.failed, outcome.rows.len()));
    Ok(Output::new(&outcome, text(&outcome, args.dry_run))?.failed(failed))
}

fn text(outcome: &Outcome, dry: bool) -> String {
    let counts: Vec<String> = outcome.stages.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let counts = format!("{} cells; stages: {}", outcome.rows.len(), counts.join(", "));
    if !dry {
        let groups = table::groups(&outcome.axes, &outcome.rows);
        let table = table::markdown(&outcome.axes, &groups);
        return format!("{table}\n{counts}\n{}", outcome.folder.join("results.csv").display());
    }
    let cell = |row: &table::Row| {
        let pairs: Vec<String> =
            outcome.axes.iter().zip(&row.values).map(|(axis, value)| format!("{axis} {value}")).collect();
        format!("{}  {}\n", row.cell, pairs.join(", "))
    };
    outcome.rows.iter().map(cell).collect::<String>() + &counts
}
