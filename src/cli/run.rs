use crate::error::Result;
use crate::mpa::progress::{Progress, span};
use crate::mpa::run::{self, Outcome};

use super::{Output, args, compute};

pub fn run(args: &args::Run, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let engine = compute::native(compute, progress)?;
    let outcome = run::run(&engine, &args.config, args.out.as_deref(), progress)?;
    Output::new(&outcome, text(&outcome))
}

fn text(outcome: &Outcome) -> String {
    let summary = &outcome.summary;
    let mut lines = vec![format!(
        "pseudo labels {}, teacher agrees {}, parity set {}, rehearsal {}, {} steps",
        summary.pseudo_labels,
        summary.select.teacher_consistent,
        summary.select.kept,
        summary.select.rehearsal,
        summary.steps
    )];
    let arms = summary.scores.keys().filter(|who| !matches!(who.as_str(), "teacher" | "student"));
    for who in ["teacher", "student"].into_iter().chain(arms.map(String::as_str)) {
        if let Some(scores) = summary.scores.get(who) {
            let gap =
                summary.gap_closed.get(who).map(|gap| format!(", {:.0} % of the gap closed", gap * 100.0));
            lines.push(format!("{who:<14} accuracy {:.4}{}", scores.accuracy, gap.unwrap_or_default()));
        }
    }
    let seconds = outcome.seconds.values().sum();
    lines.push(format!("{} in {}", outcome.folder.display(), span(seconds)));
    lines.join("\n")
}
