use serde_json::json;

use crate::error::{Error, Result};
use crate::mpa::report;

use super::{Output, args};

pub fn run(args: &args::Report) -> Result<Output> {
    let out = match (&args.out, args.folders.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [one]) => one.join("report.html"),
        (None, _) => "report.html".into(),
    };
    if !report::may_replace(&out) {
        return Err(Error::input(&out, "exists and is no report of this program: take another --out"));
    }
    report::write_all(&args.folders, &out, args.per_hour)?;
    let shown = out.display().to_string();
    Output::new(&json!({"report": shown}), shown)
}
