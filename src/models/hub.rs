//! A model argument is a folder, or an id of the Hugging Face hub (owner/name), fetched into its usual cache.
use std::path::PathBuf;

use crate::error::Result;

/// The folder of `model`: itself if it is one, else the hub's snapshot.
pub fn resolve(model: &str) -> Result<PathBuf> {
    todo!()
}
