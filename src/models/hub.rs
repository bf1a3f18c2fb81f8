//! A model argument is a folder, or an id of the Hugging Face hub (owner/name), fetched into its usual cache.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};

use super::config::read_json;
use super::weights::{INDEX, SINGLE, read_index};
use crate::error::{Error, Result};

/// Files of a checkpoint besides the weights: those that are read here, then those that transformers may want beside them.
pub const SETTINGS: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// The folder of `model`: itself if it is one, else the hub's snapshot. A whole snapshot in the cache is taken without asking the
/// hub, so that work goes on offline and a run that is taken up again sees the same model.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() || looks_like_a_path(model) {
        return Err(Error::Usage(format!(
            "model {model}: expected a checkpoint folder, {}",
            what_is_there(path)
        )));
    }
    if !is_hub_id(model) {
        let expected = "expected a checkpoint folder or a hub id such as HuggingFaceTB/SmolVLM-256M-Instruct";
        return Err(Error::Usage(format!(
            "model {model}: {expected}; there is no such folder, and this is no id"
        )));
    }
    let cache = cache().ok_or_else(|| {
        Error::Usage(format!("model {model}: set HF_HOME, there is no home folder for the hub's cache"))
    })?;
    match cached(&cache, model) {
        Some(folder) => Ok(folder),
        None => download(cache, model),
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where huggingface_hub has its things (its constants.py says which setting comes first, here and in the next).
fn home() -> Option<PathBuf> {
    let cache =
        || set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache")));
    set("HF_HOME").map(PathBuf::from).or_else(|| Some(cache()?.join("huggingface")))
}

fn cache() -> Option<Cache> {
    let named = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
    named.or_else(|| Some(home()?.join("hub"))).map(Cache::new)
}

fn token() -> Option<String> {
    let named = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
    named.or_else(|| Cache::new(home()?.join("hub")).token())
}

fn is_offline() -> bool {
    let is_true = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
    set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(is_true)
}

fn what_is_there(path: &Path) -> &'static str {
    if path.exists() { "this is a file" } else { "there is no such folder" }
}

fn looks_like_a_path(model: &str) -> bool {
    model.starts_with(['.', '/', '~'])
        || model.ends_with('/')
        || model.matches('/').count() > 1
        || model.contains('\\')
}

/// `owner/name`, or `name` as the oldest models have it.
fn is_hub_id(model: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.len() <= 96 && part.chars().all(allowed) && !part.starts_with(['.', '-'])
    };
    model.split('/').all(part) && !model.contains("..") && !model.contains("--")
}

/// The snapshot in the cache, if it has all that a model cannot do without.
fn cached(cache: &Cache, model: &str) -> Option<PathBuf> {
    let cache = cache.repo(Repo::model(model.to_string()));
    let folder = cache.get("config.json")?.parent()?.to_path_buf();
    let has = |name: &str| folder.join(name).exists();
    let template = has("chat_template.jinja") || has("chat_template.json") || has("tokenizer_config.json");
    let weights = has(SINGLE) || shards(&folder).is_ok_and(|names| names.iter().all(|name| has(name)));
    // transformers 5 may keep the picture settings in processor_config.json; a model without a vision side has none.
    let sees =
        read_json(&folder.join("config.json")).map_or(true, |config| config.contains_key("vision_config"));
    let pictures = !sees || has("preprocessor_config.json") || has("processor_config.json");
    (has("tokenizer.json") && pictures && template && weights).then_some(folder)
}

/// Files that the index of a folder names.
fn shards(folder: &Path) -> Result<BTreeSet<String>> {
    Ok(read_index(folder)?.into_values().collect())
}

fn download(cache: Cache, model: &str) -> Result<PathBuf> {
    let failed = |e: &dyn std::fmt::Display| {
        let tried = format!("it is neither a folder nor whole in the cache {}", cache.path().display());
        Error::Failure(format!("model {model}: {tried}, and the hub could not be asked: {e}"))
    };
    if is_offline() {
        return Err(failed(&"HF_HUB_OFFLINE is set"));
    }
    let mut api = ApiBuilder::from_cache(cache.clone()).with_token(token());
    if let Some(endpoint) = set("HF_ENDPOINT") {
        api = api.with_endpoint(endpoint);
    }
    let repo = api.build().map_err(|e| failed(&e))?.model(model.to_string());
    let listing = repo.info().map_err(|e| failed(&e))?;
    let published: BTreeSet<&str> = listing.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let config = get(model, &repo, "config.json")?;
    let folder = config.parent().unwrap_or(Path::new(".")).to_path_buf();
    for name in SETTINGS.iter().filter(|name| published.contains(*name)) {
        get(model, &repo, name)?;
    }
    if published.contains(SINGLE) {
        get(model, &repo, SINGLE)?;
    } else if published.contains(INDEX) {
        get(model, &repo, INDEX)?;
        for shard in shards(&folder)? {
            get(model, &repo, &shard)?;
        }
    } else {
        return Err(Error::Usage(format!(
            "model {model}: expected {SINGLE} or {INDEX} on the hub, found neither"
        )));
    }
    Ok(folder)
}

fn get(model: &str, repo: &ApiRepo, file: &str) -> Result<PathBuf> {
    repo.get(file)
        .map_err(|e| Error::Failure(format!("model {model}: {file} could not be fetched from the hub: {e}")))
}
