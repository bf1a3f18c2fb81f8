use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::bench::checkpoint::ModelShape;
use crate::bench::engine::{self, Labelling};
use crate::bench::model::{self, Load};
use crate::error::{Error, Result};
use crate::mpa::progress::Progress;

use super::bench_model::row;
use super::compute::{self, Facts};
use super::{Output, args, bench};

pub fn run(args: &args::BenchEngine, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let shape = ModelShape::find(&args.shape)?;
    let tiles = args.tiles.parse().map_err(|_| Error::Usage(format!("--tiles {}", args.tiles)))?;
    let load = Load { batch: args.batch, tiles, words: args.words, new: args.new };
    let temporary = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let place = compute::native(compute, progress)?.0;
    let facts = Facts::of(&place.device);
    let mut vlm = model::load(&shape, temporary.path(), &load, &place, args.loading.int8)?
        .with_pixels(args.loading.pixels.bounds())?;
    vlm.pages = args.loading.kv_cache;
    let done = engine::labelling(&vlm, &load, args.pictures, temporary.path())?;
    if let Some(path) = &args.csv {
        let cache = if args.loading.kv_cache.is_float() { "" } else { ", cache int8" };
        let (new, tiles, words) = (load.new, load.tiles, load.words);
        let name = format!("{}, {new} tokens, {tiles} tiles, {words} words{cache}", shape.name);
        let mut row = row("picture", name, &place, 1.0 / done.pictures_s, 0);
        if args.loading.int8.is_some() {
            row.dtype = "int8".into();
        }
        fs::write(path, bench::csv(&[row], &facts)).map_err(|e| Error::io(path, e))?;
    }
    let json = json!({"shape": shape, "load": load, "gpu": facts.gpu, "labelling": done});
    Output::new(&json, format!("{facts}\n{}: {}", shape.name, told(&done)))
}

fn told(done: &Labelling) -> String {
    let Labelling { pictures, seconds, pictures_s, tokens, tokens_s, reading, spent, peak_bytes } = done;
    let memory = peak_bytes.map_or(String::new(), |bytes| format!(", at most {} MiB in use", bytes >> 20));
    let s = |duration: Duration| duration.as_secs_f64();
    let rest = seconds - s(spent.vision) - s(spent.prefill) - s(spent.decode);
    format!(
        "{pictures} pictures in {seconds:.2} s: {pictures_s:.2} pictures/s, {tokens} tokens written, {tokens_s:.0} tokens/s{memory}\n\
         vision  {:.2} s: {} pictures\n\
         prompts {:.2} s: {} tokens, and {} that were there\n\
         decode  {:.2} s: {} steps, {} tokens\n\
         rest    {rest:.2} s\n\
         reading pictures took another thread {reading:.2} s",
        s(spent.vision),
        spent.pictures,
        s(spent.prefill),
        spent.prompt_tokens,
        spent.shared_tokens,
        s(spent.decode),
        spent.steps,
        spent.new_tokens
    )
}
