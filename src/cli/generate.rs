use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::data::images;
use crate::error::{Error, Result};
use crate::models::generate::Request;
use crate::models::hub;
use crate::mpa::answer;
use crate::mpa::progress::Progress;
use crate::ops::sample::Sampling;

use super::{Output, args, compute};

pub fn run(args: &args::Generate, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let top_p = args.top_p > 0.0 && args.top_p <= 1.0;
    if !(args.temperature >= 0.0 && args.temperature.is_finite() && top_p) {
        return Err(Error::Usage("expected --temperature of at least 0 and 0 < --top-p <= 1".to_string()));
    }
    let read = |path| images::read(path).map(Arc::new);
    let images = args.images.iter().map(|path: &std::path::PathBuf| read(Path::new(path)));
    let images = images.collect::<Result<Vec<_>>>()?;
    let engine = compute::native(compute, progress)?;
    let folder = hub::resolve(&args.model)?;
    let model = engine.vlm(&folder, args.adapter.as_deref(), args.loading.get())?;
    let request = Request {
        messages: answer::turn(images.len(), &args.prompt),
        images,
        tiles: Vec::new(),
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling { temperature: args.temperature, top_p: args.top_p },
        samples: 1,
        seed: args.seed,
        draft: None,
    };
    let completion = model.generate(&[request]).map_err(|e| e.of(&folder))?.into_iter().flatten().next();
    let completion = completion.ok_or_else(|| Error::op("generate", "1 completion", "none"))?;
    let json = json!({"text": completion.text, "tokens": completion.ids.len(), "ended": completion.ended});
    Output::new(&json, completion.text)
}
