use crate::demo;
use crate::demo::inputs::Plan;
use crate::error::Result;
use crate::mpa::progress::Progress;

use super::{Output, args};

pub fn run(args: &args::Demo, progress: &Progress) -> Result<Output> {
    let report = demo::run(args.out.as_deref(), args.seed, Plan::default(), progress)?;
    Output::new(&report, report.text())
}
