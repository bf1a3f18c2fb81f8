use serde_json::json;

use crate::error::Result;
use crate::models::adapter;
use crate::models::vlm::Vlm;

use super::guard::NewFolder;
use super::{Output, args};

pub fn run(args: &args::Merge) -> Result<Output> {
    NewFolder::check(&args.out)?;
    let mut model = Vlm::load(&args.model, Some(&args.adapter))?;
    adapter::merge(&mut model)?;
    let out = NewFolder::begin(&args.out)?;
    model.save(&args.out)?;
    out.done()?;
    let shown = args.out.display().to_string();
    Output::new(&json!({"folder": shown}), shown)
}
