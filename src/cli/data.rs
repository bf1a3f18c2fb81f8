use serde_json::json;

use crate::data::benchmarks::check;
use crate::error::{Error, Result};

use super::{Output, args};

/// Fails where something is wrong with the download.
pub fn check(args: &args::DataCheck) -> Result<Output> {
    if let Some(folder) = args.images.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(Error::input(folder, "no such folder, expected the benchmark's pictures"));
    }
    let report = check::run(&args.split.files(), args.images.as_deref())?;
    let mut text =
        format!("{} questions, {} pictures, {} answers", report.questions, report.pictures, report.answers);
    if report.unanswered {
        text += "\nno question has answers: taken for a test split";
    }
    let mut wrong = Vec::new();
    for (name, fault) in report.faults().into_iter().filter(|(_, fault)| fault.count > 0) {
        let more = if fault.count > fault.first.len() { ", ..." } else { "" };
        text += &format!("\n{} {name}: {}{more}", fault.count, fault.first.join(", "));
        wrong.push(format!("{} {name}", fault.count));
    }
    if report.questions == 0 {
        wrong.push("no questions".to_string());
    }
    let failed =
        (!report.sound()).then(|| format!("{}: {}", args.split.annotations.display(), wrong.join(", ")));
    let mut value = serde_json::to_value(&report).map_err(|e| Error::Failure(format!("--json: {e}")))?;
    value["ok"] = json!(report.sound());
    Ok(Output::new(&value, text)?.failed(failed))
}
