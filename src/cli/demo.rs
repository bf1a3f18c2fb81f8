use crate::demo;
use crate::demo::inputs::Plan;
use crate::error::Result;
use crate::mpa::progress::Progress;

use super::{Output, args, compute};

pub fn run(args: &args::Demo, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let engine = compute::native_if_asked(compute, progress)?;
    let report = demo::run(&engine, args.out.as_deref(), args.seed, Plan::default(), progress)?;
    Output::new(&report, report.text())
}
