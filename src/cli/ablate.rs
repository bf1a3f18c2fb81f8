use crate::error::Result;
use crate::mpa::ablate::{self, Outcome, table};
use crate::mpa::progress::Progress;
use crate::tensor::Device;

use super::{Output, args, compute};

pub fn run(args: &args::Ablate, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let engine = compute::native(compute, progress)?;
    // Cells on one GPU would wait for each other, with their models in its memory.
    let jobs = args.jobs.or(if let Device::Cpu = engine.0.device { None } else { Some(1) });
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
