//! Files: atomic writes and paths from one folder to another.
use std::fs::{self, File};
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// Writes a whole file: under a temporary name beside it, then renamed, so that it is there whole or not at all. Its folder is made.
/// The temporary name is always the same: what a killed process left is overwritten and renamed by the next. A link stays one, and what is
/// no file but a device or a pipe (/dev/null, /dev/stdout) is written to: a rename would put a file in its place.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |e| Error::io(path, e);
    if path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes)).map_err(io);
    }
    make_parent(path)?;
    let link = fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink());
    let path = if link { &fs::canonicalize(path).map_err(io)? } else { path };
    let name = path.file_name().ok_or_else(|| Error::input(path, "is not the name of a file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    let temporary = path.with_file_name(hidden);
    let put = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    put().map_err(io)
}

/// The same for a value as indented JSON with a newline at the end.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_vec_pretty(value).map_err(|e| Error::Failure(format!("{}: {e}", path.display())))?;
    text.push(b'\n');
    write(path, &text)
}

/// A text file's first bytes without the mark that UTF-8 may begin with; what is wrong if it is the mark of UTF-16, as PowerShell's `>` writes.
pub fn after_mark(text: &[u8]) -> Result<&[u8], &'static str> {
    match text {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err("is UTF-16, expected UTF-8"),
        [0xef, 0xbb, 0xbf, rest @ ..] => Ok(rest),
        _ => Ok(text),
    }
}

/// For serde, a path as people are shown it: serde's own way fails on one that is not UTF-8.
pub fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

pub fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))
        }
        _ => Ok(()),
    }
}

/// The folder of a file, never the empty path.
pub fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Turns paths relative to one folder into paths relative to another.
#[derive(Clone, Debug)]
pub struct Rebase {
    prefix: Option<PathBuf>,
}

impl Rebase {
    /// For what is named in the file `from` and shall be named in the file `to`, whose folder exists.
    pub fn new(from: &Path, to: &Path) -> Result<Rebase> {
        Rebase::folders(folder_of(from), folder_of(to))
    }

    /// Both folders exist.
    pub fn folders(from: &Path, to: &Path) -> Result<Rebase> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io(path, e));
        let real = |path: &Path| fs::canonicalize(path).map_err(|e| Error::io(path, e));
        let (near, far) = (absolute(to)?, absolute(from)?);
        if near == far {
            return Ok(Rebase { prefix: None });
        }
        // By name where that is right, so that links on the way stay in the path; `..` out of a link would lead elsewhere.
        let (ups, down, ancestor) = steps(&near, &far);
        let plain = near.strip_prefix(&ancestor).is_ok_and(|tail| {
            tail.components().all(|c| matches!(c, Component::Normal(_)))
                && real(&ancestor).is_ok_and(|base| real(&near).is_ok_and(|near| base.join(tail) == near))
        });
        if plain {
            return Ok(Rebase { prefix: Some(climb(ups).join(down)) });
        }
        let (ups, down, _) = steps(&real(to)?, &real(from)?);
        Ok(Rebase { prefix: Some(climb(ups).join(down)) })
    }

    /// `path` as the second file names it; absolute paths stay.
    pub fn path(&self, path: &str) -> String {
        match &self.prefix {
            Some(prefix) if !Path::new(path).is_absolute() => match prefix.join(path).to_str() {
                Some(text) => text.to_string(),
                None => path.to_string(),
            },
            _ => path.to_string(),
        }
    }
}

/// How many folders `from` is below the common ancestor, the way down from there to `to`, and that ancestor.
fn steps(from: &Path, to: &Path) -> (usize, PathBuf, PathBuf) {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let ups = from.components().count() - common;
    (ups, to.components().skip(common).collect(), from.components().take(common).collect())
}

fn climb(ups: usize) -> PathBuf {
    (0..ups).map(|_| "..").collect()
}
