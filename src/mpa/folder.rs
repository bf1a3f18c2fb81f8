//! The folder of a run: its layout, the links to what the run starts from, and the settings it was started with.
//!
//! ```text
//! config.toml              resolved, with every default, unless it was there before; `mpa run DIR/config.toml` goes on, with --out
//!                          OTHER it repeats the run
//! config.started.toml      resolved, as the run was started: what a changed config is noticed by
//! inputs/                  links: teacher, student, images, eval (the folder of the questions); of a benchmark images and eval are its
//!                          pictures, images-annotations, ... the folders of its files; contents.json: what tells the models from others, and --dtype
//! pictures.jsonl, evaluate/questions.jsonl   of a benchmark: the part of it that the config names
//! annotate.jsonl teacher.jsonl student.jsonl parity.jsonl rehearsal.jsonl rejected.jsonl select.json
//! level/ARM/               adapter and loss.jsonl
//! evaluate/WHO/            predictions.jsonl and scores.json
//! summary.json report.html
//! times.json               seconds of each stage, and on what
//! ```
//!
//! No file but times.json holds a time, a version or an absolute path, so that a repeated run gives the same bytes.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::data::append::lock;
use crate::data::files;
use crate::error::{Error, Result};
use crate::models::{self, hub};
use crate::mpa::config::{self, Config};
use crate::mpa::engine::Engine;
use crate::mpa::level;
use crate::mpa::source::Source;
use crate::tensor::DType;

/// What a run was started with, resolved; config.toml may be the user's own text.
pub const STARTED: &str = "config.started.toml";

/// What stages write beside it.
const STAGES: [&str; 13] = [
    "pictures.jsonl",
    "annotate.jsonl",
    "teacher.jsonl",
    "student.jsonl",
    "parity.jsonl",
    "rehearsal.jsonl",
    "rejected.jsonl",
    "select.json",
    "level",
    "evaluate",
    "summary.json",
    "report.html",
    TIMES,
];

/// The sections of a config that may be changed for as long as none of these files has anything in it.
const BEGUN: [(&str, &[&str]); 5] = [
    ("annotate", &["pictures.jsonl", "annotate.jsonl", "teacher.jsonl"]),
    ("predict", &["teacher.jsonl", "student.jsonl", "level"]),
    ("select", &["parity.jsonl", "rehearsal.jsonl", "rejected.jsonl", "select.json", "level"]),
    ("level", &["level"]),
    // The teacher is asked first; the questions alone are written for every start.
    ("evaluate", &["evaluate/teacher/predictions.jsonl"]),
];

/// Keys that change nothing in the results.
const FREE: [(&str, &[&str]); 4] =
    [("annotate", &["batch"]), ("predict", &["batch"]), ("evaluate", &["batch"]), ("level", &level::FREE)];

/// What the stages took: the one file that is not the same when a run is repeated.
pub const TIMES: &str = "times.json";

/// A prepared folder; locked while this lives.
pub struct Folder {
    pub path: PathBuf,
    /// As in the folder's config.toml.
    pub config: Config,
    _lock: Option<File>,
}

impl Folder {
    /// Makes or reopens the run folder of the config at `source`: `out`, else the config's `out`, else the config's own folder if it is
    /// called config.toml, else the folder beside it that has its name without the ending. `engine` looks at the student first.
    pub fn open(engine: &dyn Engine, source: &Path, out: Option<&Path>) -> Result<Folder> {
        let mut config = Config::read(source)?;
        let home = files::folder_of(source);
        let path = match (out, config.out.take()) {
            (Some(out), _) => out.to_path_buf(),
            (None, Some(out)) => home.join(out),
            (None, None) if source.file_name().is_some_and(|name| name == "config.toml") => {
                home.to_path_buf()
            }
            (None, None) => source.with_extension(""),
        };
        if path == source {
            return Err(Error::Usage(format!("{}: say with --out where the run goes", source.display())));
        }
        if let Some(evaluate) = &config.evaluate {
            evaluate.questions.check_questions(home)?;
        }
        let (targets, resolved) = Targets::resolve(config, home)?;
        check(engine, source, &resolved, targets.of("student"))?;
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        let held = File::open(&path).ok();
        if let Some(file) = &held {
            lock(file, &path)?;
        }
        let changed = compare(&path, source, &resolved)?;
        unmarked(&path, STARTED, &STAGES)?;
        targets.link(&path)?;
        targets.same_models(&path, engine.dtype())?;
        let text = resolved.to_toml()?;
        let before = fs::read(path.join(STARTED)).ok().filter(|_| changed);
        for name in ["config.toml", STARTED] {
            let file = path.join(name);
            // A config.toml that is still as the folder was started is not the user's own text.
            if !file.exists() || (before.is_some() && fs::read(&file).ok() == before) {
                files::write(&file, text.as_bytes())?;
            }
        }
        Ok(Folder { path, config: resolved, _lock: held })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// What the links in inputs/ lead to.
#[derive(Default)]
struct Targets {
    links: Vec<(String, PathBuf)>,
}

impl Targets {
    /// The links, and the config with every path through inputs/. `home`: what the paths of the config are relative to. Everything must be
    /// there, and both models of a known family.
    fn resolve(mut config: Config, home: &Path) -> Result<(Targets, Config)> {
        let mut all = Targets::default();
        all.source(&mut config.annotate.images, home, "images")?;
        if let Some(evaluate) = &mut config.evaluate {
            all.source(&mut evaluate.questions, home, "eval")?;
        }
        let models = [("teacher", &mut config.models.teacher), ("student", &mut config.models.student)];
        for (who, name) in models {
            let folder = match home.join(&*name) {
                folder if folder.is_dir() => real(&folder)?,
                _ => real(&hub::resolve(name)?)?,
            };
            // The engine of a test has models without settings.
            if folder.join("config.json").exists() {
                models::config::Config::read(&folder)?;
            }
            *name = all.link_to(who, folder);
        }
        Ok((all, config))
    }

    fn source(&mut self, source: &mut Source, home: &Path, link: &str) -> Result<()> {
        match source {
            Source::Path(path) => *path = self.either(link, &home.join(&*path), link == "images")?,
            Source::Part(part) => {
                part.pictures = self.link_to(link, real(&home.join(&part.pictures))?);
                let files =
                    [("annotations", Some(&mut part.annotations)), ("questions", part.questions.as_mut())];
                for (name, file) in files {
                    if let Some(file) = file {
                        *file = self.either(&format!("{link}-{name}"), &home.join(&*file), false)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A file through a link to its folder, or a folder, where that may be.
    fn either(&mut self, link: &str, path: &Path, folder: bool) -> Result<String> {
        if folder && path.is_dir() {
            return Ok(self.link_to(link, real(path)?));
        }
        let (folder, name) = split(path)?;
        Ok(format!("{}/{name}", self.link_to(link, folder)))
    }

    fn link_to(&mut self, link: &str, target: PathBuf) -> String {
        self.links.push((link.to_string(), target));
        format!("inputs/{link}")
    }

    fn of(&self, link: &str) -> &Path {
        self.links.iter().find(|(name, _)| name == link).map_or(Path::new(""), |(_, target)| target)
    }

    /// The models, and their type, are those with which the folder was started: what was made with others must not be mixed with what these make.
    fn same_models(&self, folder: &Path, dtype: Option<DType>) -> Result<()> {
        let inputs = folder.join("inputs");
        let file = inputs.join("contents.json");
        let mut now = BTreeMap::new();
        for who in ["teacher", "student"] {
            now.insert(who.to_string(), models::contents::of(self.of(who))?);
        }
        now.insert("dtype".to_string(), dtype.map_or("default".to_string(), |dtype| dtype.to_string()));
        if !file.exists() {
            return files::write_json(&file, &now);
        }
        let text = fs::read(&file).map_err(|e| Error::io(&file, e))?;
        let before: BTreeMap<String, String> =
            serde_json::from_slice(&text).map_err(|e| Error::input(&file, e.to_string()))?;
        match now.iter().find(|(key, now)| before.get(*key).is_some_and(|before| before != *now)) {
            None => Ok(()),
            Some((key, now)) if key == "dtype" => {
                let what =
                    format!("was started with --dtype {}, now it is {now}: take another --out", before[key]);
                Err(Error::input(folder, what))
            }
            Some((who, _)) => {
                let what = "is another model than when this folder was started: take another --out";
                Err(Error::input(inputs.join(who), what))
            }
        }
    }

    /// Makes the links that are not there; what is there must lead to the same place.
    fn link(&self, folder: &Path) -> Result<()> {
        let inputs = folder.join("inputs");
        fs::create_dir_all(&inputs).map_err(|e| Error::io(&inputs, e))?;
        for (name, target) in &self.links {
            let link = inputs.join(name);
            if link.symlink_metadata().is_err() {
                symlink(target, &link).map_err(|e| Error::io(&link, e))?;
            } else if real(&link)? != *target {
                let what = format!("does not lead to {}: take another --out", target.display());
                return Err(Error::input(&link, what));
            }
        }
        Ok(())
    }
}

/// An error if `folder` has one of these files, but not the one that is always written before them: they are somebody's own, and would be lost.
pub(super) fn unmarked(folder: &Path, mark: &str, names: &[&str]) -> Result<()> {
    match names.iter().map(|name| folder.join(name)).find(|file| file.exists()) {
        Some(file) if !folder.join(mark).exists() => {
            let what = format!("is there without {mark}, so it is not of such a folder: take another --out");
            Err(Error::input(file, what))
        }
        _ => Ok(()),
    }
}

#[cfg(unix)]
pub(crate) fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
pub(crate) fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}

fn real(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|e| Error::io(path, e))
}

/// A file as its folder, all links followed, and its own name.
fn split(file: &Path) -> Result<(PathBuf, String)> {
    let data = fs::metadata(file).map_err(|e| Error::io(file, e))?;
    if !data.is_file() {
        let got = if data.is_dir() { "a folder" } else { "neither a file nor a folder" };
        return Err(Error::input(file, format!("is {got}, expected a file")));
    }
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::input(file, "expected a file with a name in UTF-8"))?;
    Ok((real(files::folder_of(file))?, name.to_string()))
}

/// What would stop the student's training is said before the teacher is asked anything, which takes hours.
fn check(engine: &dyn Engine, source: &Path, config: &Config, student: &Path) -> Result<()> {
    let (pixels, level) = (config.models.pixels_of(student)?, &config.level);
    if level.arms.is_empty() {
        return Ok(());
    }
    engine.check(student, pixels, &level.trainable()).map_err(|e| match e {
        Error::Usage(what) => config::wrong(source, level.trained_key(), what),
        other => other,
    })
}

/// An error if the folder was started with other settings, but for those of stages that have not begun; whether some of these have changed.
fn compare(folder: &Path, source: &Path, config: &Config) -> Result<bool> {
    let same = |a: &Path| real(a).ok().zip(real(source).ok()).is_some_and(|(a, b)| a == b);
    let earlier = [STARTED, "config.toml"].map(|name| folder.join(name));
    let Some(earlier) = earlier.into_iter().find(|file| file.exists() && !same(file)) else {
        return Ok(false);
    };
    let parse = |text: &str, path: &Path| {
        text.parse::<Table>().map_err(|e| Error::input(path, e.message().to_string()))
    };
    let before = fs::read_to_string(&earlier).map_err(|e| Error::io(&earlier, e))?;
    let (mut before, mut now) = (parse(&before, &earlier)?, parse(&config.to_toml()?, source)?);
    for (section, free) in FREE {
        for table in [&mut before, &mut now] {
            if let Some(Value::Table(section)) = table.get_mut(section) {
                section.retain(|key, _| !free.contains(&key));
            }
        }
    }
    let whole = (before.clone(), now.clone());
    for (section, files) in BEGUN {
        if !files.iter().any(|name| is_begun(&folder.join(name))) {
            before.remove(section);
            now.remove(section);
        }
    }
    match difference("", &before, &now) {
        None => Ok(whole.0 != whole.1),
        Some((key, then, now)) => {
            let what = format!("`{key}` is {now}, but {then} in {}, with which", earlier.display());
            Err(Error::input(source, format!("{what} this folder was started: take another --out")))
        }
    }
}

/// A folder is there, or a file with something in it: a stage opens its file before the model is loaded.
fn is_begun(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_dir() || data.len() > 0)
}

/// The first key in which two tables differ, and both values.
fn difference(prefix: &str, before: &Table, now: &Table) -> Option<(String, String, String)> {
    let show = |value: Option<&Value>| value.map_or("not set".to_string(), ToString::to_string);
    let keys = before.keys().chain(now.keys().filter(|key| !before.contains_key(*key)));
    for key in keys {
        let path = format!("{prefix}{key}");
        match (before.get(key), now.get(key)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => {
                if let Some(found) = difference(&format!("{path}."), a, b) {
                    return Some(found);
                }
            }
            (a, b) if a != b => return Some((path, show(a), show(b))),
            _ => {}
        }
    }
    None
}
