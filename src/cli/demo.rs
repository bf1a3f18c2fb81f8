use serde_json::json;

use crate::demo;
use crate::demo::inputs::{self, Plan};
use crate::error::Result;
use crate::mpa::progress::Progress;

use super::{Output, args, compute};

pub fn run(args: &args::Demo, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    if let (true, Some(out)) = (args.only_write, &args.out) {
        inputs::prepare(out, args.seed, Plan::default())?;
        inputs::write_labels(&out.join("inputs/labelled.jsonl"), args.seed, Plan::default())?;
        let shown = out.display().to_string();
        return Output::new(&json!({"folder": shown}), shown);
    }
    let engine = compute::native_if_asked(compute, progress)?;
    let report = demo::run(&engine, args.out.as_deref(), args.seed, Plan::default(), progress)?;
    Output::new(&report, report.text())
}
