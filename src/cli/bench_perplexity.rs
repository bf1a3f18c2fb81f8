use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bench::perplexity::{self, Reading};
use crate::error::{Error, Result};
use crate::models::config::{Config, read_text};
use crate::models::hub;
use crate::models::prompt::{Placeholders, Prompter};
use crate::models::vlm::Vlm;
use crate::mpa::engine::{Loading, Native};
use crate::mpa::progress::Progress;

use super::{Output, args, compute};

/// Bytes of the largest text that is read.
const MAX_TEXT: u64 = 64 << 20;

pub fn run(args: &args::Perplexity, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let engine = compute::native(compute, progress)?;
    let vlm = load(&engine, &args.model, args.loading.get())?;
    let mut ids = encode(&vlm.prompter, &args.text)?;
    if let Some(reference) = &args.reference {
        same_tokens(&hub::resolve(reference)?, &args.text, &ids, &vlm)?;
    }
    if let Some(tokens) = args.tokens {
        if ids.len() < tokens {
            return Err(Error::Usage(format!("--tokens {tokens}: the text has {}", ids.len())));
        }
        ids.truncate(tokens);
    }
    let reading = read(&vlm, &ids, args.window, "reading", progress)?;
    let mut json =
        json!({"tokens": reading.tokens, "predicted": reading.predicted, "perplexity": reading.perplexity});
    let mut text = format!("perplexity {:.4} on {} tokens", reading.perplexity, reading.tokens);
    if let Some(reference) = &args.reference {
        drop(vlm);
        let vlm = load(&engine, reference, Loading::default())?;
        let other = read(&vlm, &ids, args.window, "reference", progress)?;
        let (ratio, agreement) = (reading.perplexity / other.perplexity, reading.agreement(&other));
        json["reference_perplexity"] = json!(other.perplexity);
        json["ratio"] = json!(ratio);
        json["agreement"] = json!(agreement);
        text += &format!(
            ", the reference's {:.4} (ratio {ratio:.5}), the same most likely token in {:.2} % of the places",
            other.perplexity,
            100.0 * agreement
        );
    }
    Output::new(&json, text)
}

/// The tokens of all texts, one after the other.
fn encode(prompter: &Prompter, texts: &[PathBuf]) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for path in texts {
        ids.extend(prompter.encode_text(&read_text(path, MAX_TEXT)?)?);
    }
    Ok(ids)
}

/// An error if the reference, of which no weights are read yet, has other tokens for the texts.
fn same_tokens(reference: &Path, texts: &[PathBuf], ids: &[u32], vlm: &Vlm) -> Result<()> {
    let prompter = Prompter::read(reference, Placeholders::of(&Config::read(reference)?))?;
    if encode(&prompter, texts)? == ids {
        return Ok(());
    }
    let what =
        format!("has another tokenizer than {}, expected a reference with the same", vlm.folder.display());
    Err(Error::input(reference, what))
}

fn load(engine: &Native, model: &str, loading: Loading) -> Result<Vlm> {
    let folder = hub::resolve(model)?;
    engine.vlm(&folder, None, loading)
}

fn read(vlm: &Vlm, ids: &[u32], window: usize, name: &str, progress: &Progress) -> Result<Reading> {
    let mut meter = progress.start(name, ids.len().div_ceil(window), 0);
    let reading = perplexity::read(vlm, ids, window, &mut || meter.advance(1));
    meter.finish();
    reading
}
