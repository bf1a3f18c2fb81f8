//! Keeps a command from going on with an output that was made with other settings, or that it did not make at all.
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::data::append::lock;
use crate::data::files;
use crate::error::{Error, Result};

/// No output is an input or another output, however their paths are spelled.
pub fn apart(outputs: &[&Path], inputs: &[&Path]) -> Result<()> {
    let real: Vec<PathBuf> = outputs.iter().chain(inputs).map(|path| resolved(path)).collect();
    for (i, output) in outputs.iter().enumerate() {
        if real[i + 1..].contains(&real[i]) {
            return Err(Error::Usage(format!("{} is named twice, once as output", output.display())));
        }
    }
    Ok(())
}

/// Where a file is, or will be when its folders have been made: links followed as far as there is something.
fn resolved(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).components() {
        match part {
            Component::ParentDir => drop(real.pop()),
            other => real.push(other),
        }
        real = fs::canonicalize(&real).unwrap_or(real);
    }
    real
}

const SETTINGS: &str = "settings.json";

/// Settings that are locked: of two that begin one output in the same instant, the one that goes on has written them.
#[must_use]
pub struct Held {
    _settings: File,
}

/// For an output file; the settings are kept beside it, in FILE.settings.json.
pub fn file(out: &Path, input: &Path, settings: &impl Serialize) -> Result<Held> {
    if resolved(out) == resolved(input) {
        return Err(Error::Usage(format!("--out is the input file {}", input.display())));
    }
    if out.metadata().is_ok_and(|there| !there.is_file()) {
        return Err(Error::input(out, "is no file, expected one that can be added to later"));
    }
    let mut name = OsString::from(out.file_name().unwrap_or_default());
    name.push(".settings.json");
    let filled = || out.metadata().is_ok_and(|data| data.len() > 0);
    same(out, &out.with_file_name(name), filled, settings)
}

/// For an output folder; the settings are kept in it, in settings.json.
pub fn folder(out: &Path, settings: &impl Serialize) -> Result<Held> {
    // Settings alone are those of a start that failed, and a hidden file is what a kill left of one that was written.
    let nothing = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            name == SETTINGS || name.as_encoded_bytes().starts_with(b".")
        })
    };
    let filled = || fs::read_dir(out).is_ok_and(|mut entries| !entries.all(nothing));
    same(out, &out.join(SETTINGS), filled, settings)
}

/// An output folder that is filled in one go; until then it has the file UNFINISHED, by which the next start knows what a killed one left.
pub struct NewFolder {
    marker: PathBuf,
    /// Locked: two that fill one folder would each throw away what the other writes.
    _file: File,
}

const UNFINISHED: &str = ".unfinished";

impl NewFolder {
    /// There is nothing at `out` that this command has not made.
    pub fn check(out: &Path) -> Result<()> {
        let filled = match fs::read_dir(out) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            entries => entries.map_err(|e| Error::io(out, e))?.next().is_some(),
        };
        if filled && !out.join(UNFINISHED).is_file() {
            return Err(Error::input(out, "is not empty: take another folder"));
        }
        Ok(())
    }

    /// Makes the folder, and empties it of what a killed start left.
    pub fn begin(out: &Path) -> Result<NewFolder> {
        NewFolder::check(out)?;
        fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        let marker = out.join(UNFINISHED);
        // Made in an empty folder alone: in another it is gone because the process that was at work is done.
        let empty = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
        let opened = File::options().write(true).create(empty).truncate(false).open(&marker);
        let mut file = opened.map_err(|e| Error::io(&marker, e))?;
        file.try_lock().map_err(|_| Error::input(out, "another process is writing here"))?;
        NewFolder::check(out)?;
        file.write_all(
            b"What is here is not whole: the command that makes it was stopped. Start it again.\n",
        )
        .map_err(|e| Error::io(&marker, e))?;
        for entry in fs::read_dir(out).map_err(|e| Error::io(out, e))? {
            let path = entry.map_err(|e| Error::io(out, e))?.path();
            if path != marker && path.is_file() {
                fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        Ok(NewFolder { marker, _file: file })
    }

    /// All is there.
    pub fn done(self) -> Result<()> {
        fs::remove_file(&self.marker).map_err(|e| Error::io(&self.marker, e))
    }
}

fn same(out: &Path, kept: &Path, filled: impl Fn() -> bool, settings: &impl Serialize) -> Result<Held> {
    if filled() && !kept.exists() {
        return Err(Error::input(out, "exists and was not made by this command: take another --out"));
    }
    let io = |e| Error::io(kept, e);
    files::make_parent(kept)?;
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(kept);
    let mut file = opened.map_err(io)?;
    lock(&file, kept)?;
    let failure = |e: serde_json::Error| Error::Failure(format!("{}: {e}", kept.display()));
    let now = serde_json::to_value(settings)
        .map_err(|e| Error::input(kept, format!("cannot hold the arguments: {e}")))?;
    // Asked again: whoever had the lock may have been at work.
    if filled() {
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(io)?;
        let before: Value =
            serde_json::from_slice(&text).map_err(|e| Error::input(kept, format!("not JSON: {e}")))?;
        if let Some((key, before, now)) = difference(&before, &now) {
            let what =
                format!("was begun with {key} = {before}, now it is {now}: remove it or take another --out");
            return Err(Error::input(out, what));
        }
    } else {
        // In place, as a file of another name would not be locked; half of them are nothing, since there is no output yet.
        let text = serde_json::to_string_pretty(&now).map_err(failure)? + "\n";
        let mut put = || {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        put().map_err(io)?;
    }
    Ok(Held { _settings: file })
}

/// The first key whose values differ.
fn difference(before: &Value, now: &Value) -> Option<(String, Value, Value)> {
    let empty = serde_json::Map::new();
    let (before, now) = (before.as_object().unwrap_or(&empty), now.as_object().unwrap_or(&empty));
    let key = before.keys().chain(now.keys()).find(|key| before.get(*key) != now.get(*key))?;
    let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
    Some((key.clone(), value(before), value(now)))
}
