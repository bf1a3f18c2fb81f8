use serde_json::json;

use crate::error::Result;
use crate::mpa::report;

use super::{Output, args};

pub fn run(args: &args::Report) -> Result<Output> {
    let out = match (&args.out, args.folders.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [one]) => one.join("report.html"),
        (None, _) => "report.html".into(),
    };
    report::write_all(&args.folders, &out, args.per_hour)?;
    Output::new(&json!({"report": out}), out.display().to_string())
}
