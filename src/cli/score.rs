use crate::data::files;
use crate::error::Result;
use crate::mpa::score;

use super::Output;
use super::args::{self, Official};

pub fn run(args: &args::Score) -> Result<Output> {
    let metric = match args.metric {
        Official::Official => args.split.benchmark.metric(),
        Official::Paper => crate::data::official::Metric::Containment,
    };
    let scores = score::run(&args.split.files(), metric, &args.predictions)?;
    if let Some(path) = &args.per_question {
        files::write(path, &scores.lines()?)?;
    }
    Output::new(&scores, scores.table())
}
