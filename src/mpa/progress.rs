//! What people see while a stage works, on stderr: a bar on a terminal, a line every few seconds elsewhere, nothing when quiet.
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Time between two plain lines.
const PACE: Duration = Duration::from_secs(5);

pub struct Progress {
    mode: Mode,
}

enum Mode {
    Mute,
    Quiet,
    Plain,
    Bars(MultiProgress),
}

impl Progress {
    /// Bars if stderr is a terminal.
    pub fn new(quiet: bool) -> Progress {
        let mode = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Bars(MultiProgress::new()),
            (false, false) => Mode::Plain,
        };
        Progress { mode }
    }

    /// Not even warnings.
    pub fn silent() -> Progress {
        Progress { mode: Mode::Mute }
    }

    /// Starts a stage of `total` steps of which `done` were there before.
    pub fn start(&self, stage: &str, total: usize, done: usize) -> Meter {
        let bar = match &self.mode {
            Mode::Bars(all) => Some(all.add(bar(stage, total, done))),
            _ => None,
        };
        let now = Instant::now();
        let plain = matches!(self.mode, Mode::Plain);
        if plain {
            let after = if done > 0 { format!(", {done} done before") } else { String::new() };
            say(&format!("{stage}: {total} to do{after}"));
        }
        Meter { stage: stage.to_string(), total, before: done, done, bar, plain, began: now, spoke: now }
    }

    /// A line that is not shown when quiet.
    pub fn note(&self, text: &str) {
        match &self.mode {
            Mode::Mute | Mode::Quiet => {}
            Mode::Plain => say(text),
            Mode::Bars(all) => all.suspend(|| say(text)),
        }
    }

    /// A warning that a record is passed over, and which picture is why, if one is.
    pub fn skipped(&self, id: &str, picture: Option<&Path>, reason: &str) {
        let at = picture.map(|path| format!("{}: ", path.display())).unwrap_or_default();
        self.warn(&format!("skipped {id:?}: {at}{reason}"));
    }

    /// A line that is shown even when quiet.
    pub fn warn(&self, text: &str) {
        let text = format!("mpa: {text}");
        match &self.mode {
            Mode::Mute => {}
            Mode::Bars(all) => all.suspend(|| say(&text)),
            _ => say(&text),
        }
    }
}

/// The progress of one stage.
pub struct Meter {
    stage: String,
    total: usize,
    before: usize,
    done: usize,
    bar: Option<ProgressBar>,
    plain: bool,
    began: Instant,
    spoke: Instant,
}

impl Meter {
    pub fn advance(&mut self, steps: usize) {
        self.done += steps;
        if let Some(bar) = &self.bar {
            bar.inc(steps as u64);
        }
        if self.plain && self.spoke.elapsed() >= PACE {
            self.spoke = Instant::now();
            say(&self.line());
        }
    }

    /// Something to show beside the count, such as a loss.
    pub fn message(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }

    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.plain || self.bar.is_some() {
            let seconds = self.began.elapsed().as_secs_f64();
            say(&format!("{}: {}/{} in {}", self.stage, self.done, self.total, span(seconds)));
        }
    }

    fn line(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        let rate = (self.done - self.before) as f64 / seconds.max(1e-9);
        let left = self.total.saturating_sub(self.done) as f64 / rate.max(1e-9);
        format!("{}: {}/{}, {rate:.2}/s, {} left", self.stage, self.done, self.total, span(left))
    }
}

fn bar(stage: &str, total: usize, done: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_position(done as u64).with_prefix(stage.to_string());
    let template = "{prefix:<18} {wide_bar} {pos}/{len} {per_sec} {eta} left {msg}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A length of time for people.
pub fn span(seconds: f64) -> String {
    let whole = seconds.min(1e9) as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

/// A line on stderr; that nobody reads it any more is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
