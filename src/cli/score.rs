use std::path::{Path, PathBuf};

use crate::data::files;
use crate::error::Result;
use crate::mpa::score;

use super::args::{self, Official};
use super::{Output, guard};

pub fn run(args: &args::Score) -> Result<Output> {
    let metric = match args.metric {
        Official::Official => args.split.benchmark.metric(),
        Official::Paper => crate::data::official::Metric::Containment,
    };
    if let Some(out) = &args.per_question {
        let inputs = [Some(&args.predictions), Some(&args.split.annotations), args.split.questions.as_ref()];
        let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
        guard::apart(&[out], &inputs)?;
    }
    let scores = score::run(&args.split.files(), metric, &args.predictions)?;
    if let Some(path) = &args.per_question {
        files::write(path, &scores.lines()?)?;
    }
    Output::new(&scores, scores.table())
}
