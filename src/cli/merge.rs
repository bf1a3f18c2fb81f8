use std::fs;

use serde_json::json;

use crate::error::{Error, Result};
use crate::models::adapter;
use crate::models::vlm::Vlm;

use super::{Output, args};

pub fn run(args: &args::Merge) -> Result<Output> {
    if fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(&args.out, "is not empty: take another --out"));
    }
    let mut model = Vlm::load(&args.model, Some(&args.adapter))?;
    adapter::merge(&mut model)?;
    model.save(&args.out)?;
    Output::new(&json!({"folder": args.out}), format!("{}", args.out.display()))
}
