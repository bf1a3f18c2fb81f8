//! Stages in folders that are named by what decides their content, so that cells which agree in it share them.
//!
//! ```text
//! DIR/stages/KIND-HASH/settings.json   what the stage depends on; the hash is of this text
//! DIR/stages/KIND-HASH/done.json       written last, with the seconds that the last start took
//! ```
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::data::files;
use crate::error::{Error, Result};
use crate::random;

/// What became of a stage: its seconds, or why it failed.
type State = Arc<Mutex<Option<Result<f64, String>>>>;

pub struct Stages {
    root: PathBuf,
    /// Only names are found out; nothing is done.
    dry: bool,
    states: Mutex<BTreeMap<String, State>>,
}

impl Stages {
    pub fn new(root: PathBuf, dry: bool) -> Stages {
        Stages { root, dry, states: Mutex::default() }
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// All that have been asked for.
    pub fn names(&self) -> Vec<String> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The name of the stage with these settings, done: by `work` in its folder, unless it was done before or by another cell. One that
    /// failed fails again for every cell, without being tried again.
    pub fn run(
        &self,
        kind: &str,
        settings: &Value,
        work: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<String> {
        let name = name(kind, settings);
        let state = {
            let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
            states.entry(name.clone()).or_default().clone()
        };
        if self.dry {
            return Ok(name);
        }
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = state.get_or_insert_with(|| self.work(&name, settings, work).map_err(|e| e.to_string()));
        match result {
            Ok(_) => Ok(name),
            Err(why) => Err(Error::Failure(why.clone())),
        }
    }

    /// The folder of a stage, for what another one can do of it beforehand; none if it is done.
    pub fn ahead(&self, name: &str, settings: &Value) -> Result<Option<PathBuf>> {
        let folder = self.folder(name);
        if folder.join("done.json").exists() {
            return Ok(None);
        }
        files::write_json(&folder.join("settings.json"), settings)?;
        Ok(Some(folder))
    }

    /// What the stage took; 0 for one that is not done.
    pub fn seconds(&self, name: &str) -> f64 {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states.get(name).cloned().unwrap_or_default();
        drop(states);
        match *state.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Ok(seconds)) => seconds,
            _ => 0.0,
        }
    }

    fn work(&self, name: &str, settings: &Value, work: impl FnOnce(&Path) -> Result<()>) -> Result<f64> {
        let folder = self.folder(name);
        let (about, done) = (folder.join("settings.json"), folder.join("done.json"));
        if done.exists() {
            let there: Value = read(&about)?;
            if there != *settings {
                return Err(Error::input(
                    &about,
                    "is not what this folder is named after: remove the folder",
                ));
            }
            let seconds = read(&done)?.get("seconds").and_then(Value::as_f64);
            return seconds.ok_or_else(|| Error::input(&done, "expected a number `seconds`"));
        }
        files::write_json(&about, settings)?;
        let begun = Instant::now();
        work(&folder)?;
        let seconds = begun.elapsed().as_secs_f64();
        files::write_json(&done, &json!({"seconds": seconds}))?;
        Ok(seconds)
    }
}

/// What a stage of this kind is called that depends on these.
pub fn name(kind: &str, settings: &Value) -> String {
    format!("{kind}-{:016x}", random::hash(&settings.to_string()))
}

/// A JSON file.
pub fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::input(path, e.to_string()))
}
