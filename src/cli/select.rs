use crate::error::{Error, Result};
use crate::mpa::level::rehearsal_beside;
use crate::mpa::select::{self, Criterion, Outputs, Rule};

use super::{Output, args};

pub fn run(args: &args::Select) -> Result<Output> {
    let rehearsal = args.rehearsal.clone().unwrap_or_else(|| rehearsal_beside(&args.out));
    let outputs = [Some(&args.out), Some(&rehearsal), args.rejected.as_ref()];
    let files: Vec<_> = outputs.into_iter().flatten().chain([&args.teacher, &args.student]).collect();
    for (i, file) in files.iter().enumerate() {
        if i < files.len() - 2 && files[i + 1..].contains(file) {
            return Err(Error::Usage(format!("{} is named twice, once as output", file.display())));
        }
    }
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
