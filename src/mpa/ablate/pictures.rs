//! The pictures of a cell, where these are not all: drawn with its seed, and the records that are about them.
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::data::files::{self, Rebase};
use crate::data::images;
use crate::data::records::{Reader, Record};
use crate::error::{Error, Result};
use crate::random;

/// The file of those that a stage annotates.
pub const LIST: &str = "pictures.jsonl";
/// All pictures of a benchmark's part.
pub const WHOLE: &str = "source.jsonl";

/// Writes the list of `most` pictures of `source` into `folder`, in the order of the source.
pub fn list(source: &Path, folder: &Path, most: usize, seed: u64) -> Result<PathBuf> {
    let path = folder.join(LIST);
    let all = pictures(source)?;
    let ids: Vec<String> = all.iter().map(|(id, _)| id.clone()).collect();
    let rebase = if source.is_dir() { Rebase::folders(source, folder)? } else { Rebase::new(source, &path)? };
    let mut lines = Vec::new();
    for i in draw(&ids, most, seed)? {
        let (id, image) = &all[i];
        let record = Record { id: id.clone(), image: Some(rebase.path(image)), ..Record::default() };
        lines.extend(record.to_line()?);
    }
    files::write(&path, &lines)?;
    Ok(path)
}

/// Ids and paths, as `annotate` names them.
pub fn pictures(source: &Path) -> Result<Vec<(String, String)>> {
    if source.is_dir() {
        let name = |path: PathBuf| {
            let name = path.strip_prefix(source).ok().and_then(Path::to_str).map(str::to_string);
            name.map(|name| (name.clone(), name))
                .ok_or_else(|| Error::input(&path, "the file name is not UTF-8"))
        };
        return images::list(source)?.into_iter().map(name).collect();
    }
    let mut all = Vec::new();
    for record in Reader::open(source)? {
        let record = record?;
        if record.rejected.is_none() {
            all.push((record.id.clone(), record.need(source, "image")?.to_string()));
        }
    }
    Ok(all)
}

/// The places of `number` ids drawn with `seed`, in order; more of them hold all that fewer do.
pub fn draw(ids: &[String], number: usize, seed: u64) -> Result<Vec<usize>> {
    if number > ids.len() {
        let what =
            format!("`pictures`: expected at most the {} pictures that there are, got {number}", ids.len());
        return Err(Error::Usage(what));
    }
    let salt = random::hash("pictures");
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_cached_key(|&i| (random::mix(seed, &[salt, random::hash(&ids[i])]), i));
    order.truncate(number);
    order.sort_unstable();
    Ok(order)
}

/// The id of a pseudo-label's picture.
pub fn picture(id: &str, samples: usize) -> &str {
    if samples <= 1 { id } else { id.rsplit_once('#').map_or(id, |(picture, _)| picture) }
}

/// Copies the records of the chosen pictures. Both files' folders lie side by side, so that relative paths hold.
pub fn keep(from: &Path, to: &Path, chosen: Option<&HashSet<String>>, samples: usize) -> Result<()> {
    let mut lines = Vec::new();
    for record in Reader::open(from)? {
        let record = record?;
        if chosen.is_none_or(|chosen| chosen.contains(picture(&record.id, samples))) {
            lines.extend(record.to_line()?);
        }
    }
    files::write(to, &lines)
}
