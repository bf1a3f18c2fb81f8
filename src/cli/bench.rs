use crate::error::{Error, Result};
use crate::mpa::progress::Progress;

use super::{Output, args};

pub fn ops(_args: &args::BenchOps, _compute: &args::Compute, _progress: &Progress) -> Result<Output> {
    Err(Error::Failure("not yet".into()))
}
