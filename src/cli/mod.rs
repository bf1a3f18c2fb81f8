//! The command line: `args.rs` says what is accepted, one small file a command does it. Results go to stdout, all else to stderr.

mod ablate;
mod annotate;
mod args;
mod bench;
mod bench_engine;
mod bench_model;
mod bench_perplexity;
mod compute;
mod data;
mod demo;
mod doctor;
mod evaluate;
mod generate;
mod guard;
mod level;
mod merge;
mod predict;
mod quantize;
mod report;
mod run;
mod score;
mod select;
mod selftest;

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;
use clap::error::ErrorKind;
use serde::Serialize;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};
use crate::mpa::progress::Progress;
use args::{Cli, Command, Compute};

/// What a command has to say: json or text is printed on stdout.
struct Output {
    json: Value,
    text: String,
    /// What makes this a failure all the same.
    failed: Option<String>,
}

impl Output {
    fn new(json: &impl Serialize, text: impl Into<String>) -> Result<Output> {
        let json = serde_json::to_value(json).map_err(|e| Error::Failure(format!("--json: {e}")))?;
        Ok(Output { json, text: text.into(), failed: None })
    }

    /// Exit code 1 after printing, if there is a reason.
    fn failed(self, failed: Option<String>) -> Output {
        Output { failed, ..self }
    }
}

/// Runs the program; returns its exit code: 0, 1 for a failure, 2 for a user's mistake.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    log(cli.verbose, cli.quiet);
    let progress = Progress::new(cli.quiet);
    match threads().and_then(|()| dispatch(cli.command, &cli.compute, &progress)) {
        Ok(output) => {
            let text = if cli.json { output.json.to_string() } else { output.text };
            let code = print(&text);
            match output.failed {
                Some(why) => {
                    complain(&why);
                    1
                }
                None => code,
            }
        }
        Err(error) => {
            complain(&error.to_string());
            error.exit_code()
        }
    }
}

/// Starts rayon's threads: it would panic at its first use if not all could be started. Where memory ends with one that has just begun, nothing can be
/// said any more, so there is a limit that no machine needs.
fn threads() -> Result<()> {
    const MOST: usize = 4096;
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    if let Some(asked) = asked.filter(|&n: &usize| n > MOST) {
        return Err(Error::Usage(format!("RAYON_NUM_THREADS: expected at most {MOST}, got {asked}")));
    }
    let wrong =
        |e| Error::Failure(format!("the threads cannot be started (RAYON_NUM_THREADS sets how many): {e}"));
    rayon::ThreadPoolBuilder::new().build_global().map_err(wrong)
}

fn dispatch(command: Command, compute: &Compute, progress: &Progress) -> Result<Output> {
    match command {
        Command::Demo(args) => demo::run(&args, compute, progress),
        Command::Run(args) => run::run(&args, compute, progress),
        Command::Ablate(args) => ablate::run(&args, compute, progress),
        Command::Annotate(args) => annotate::run(&args, compute, progress),
        Command::Predict(args) => predict::run(&args, compute, progress),
        Command::Select(args) => select::run(&args),
        Command::Level(args) => level::run(&args, compute, progress),
        Command::Evaluate(args) => evaluate::run(&args, compute, progress),
        Command::Score(args) => score::run(&args),
        Command::Data(args::Data::Check(args)) => data::check(&args),
        Command::Report(args) => report::run(&args),
        Command::Generate(args) => generate::run(&args, compute, progress),
        Command::Merge(args) => merge::run(&args),
        Command::Quantize(args) => quantize::run(&args, compute, progress),
        Command::Selftest(args) => selftest::run(&args, compute, progress),
        Command::Bench(args::Bench::Ops(args)) => bench::ops(&args, compute, progress),
        Command::Bench(args::Bench::Engine(args)) => bench_engine::run(&args, compute, progress),
        Command::Bench(args::Bench::Model(args)) => bench_model::run(&args, compute, progress),
        Command::Bench(args::Bench::Perplexity(args)) => bench_perplexity::run(&args, compute, progress),
        Command::Doctor(args) => doctor::run(&args),
    }
}

/// Help and version go to stdout, mistakes to stderr.
fn usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return print(text.trim_end());
    }
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            complain(&format!("a command is needed\n\n{}", text.trim_end()));
        }
        _ => complain(text.trim_start_matches("error: ").trim_end()),
    }
    2
}

/// Prints on stdout; a reader that has gone away is no error.
fn print(text: &str) -> u8 {
    if text.is_empty() {
        return 0;
    }
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            complain(&format!("stdout: {error}"));
            1
        }
    }
}

/// Prints on stderr; if that fails there is nowhere to say so.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "mpa: {text}");
}

fn log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    // A second subscriber (in tests) is refused, which does no harm.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .without_time()
        .try_init();
}
