use crate::error::{Error, Result};
use crate::mpa::level::rehearsal_beside;
use crate::mpa::select::{self, Criterion, Outputs, Rule};

use super::{Output, args, guard};

pub fn run(args: &args::Select) -> Result<Output> {
    let rehearsal = args.rehearsal.clone().unwrap_or_else(|| rehearsal_beside(&args.out));
    let outputs = [Some(args.out.as_path()), Some(&rehearsal), args.rejected.as_deref()];
    guard::apart(&outputs.into_iter().flatten().collect::<Vec<_>>(), &[&args.teacher, &args.student])?;
    let outputs =
        Outputs { parity: Some(&args.out), rehearsal: Some(&rehearsal), rejected: args.rejected.as_deref() };
    if !args.margin.is_finite() || (args.margin != 0.0 && args.rule != Rule::Margin) {
        return Err(Error::Usage(format!("--margin {}: expected a number, and --rule margin", args.margin)));
    }
    let criterion = Criterion { rule: args.rule, margin: args.margin };
    let counts = select::run(&args.teacher, &args.student, criterion, outputs)?;
    let text = format!(
        "{} records: teacher agrees with {}, student is wrong on {}, kept {}, rehearsal {}",
        counts.records, counts.teacher_consistent, counts.student_wrong, counts.kept, counts.rehearsal
    );
    Output::new(&counts, text)
}
