//! Commands that check and time a device.
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Loading, batch, positive};

/// Compare every op on a GPU with the CPU, in f32 and bf16
///
/// Prints the worst error of each op and shape, what is allowed and why. Two runs must give the same bits. Exit code 1 if anything is off.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa selftest
  compute-sanitizer --tool racecheck mpa selftest --quick --filter attention")]
pub struct Selftest {
    /// Small shapes only
    #[arg(long)]
    pub quick: bool,
    /// Only ops whose name contains this
    #[arg(long, value_name = "NAME", default_value = "")]
    pub filter: String,
}

/// Measure
#[derive(Subcommand)]
pub enum Bench {
    Ops(BenchOps),
    Model(BenchModel),
    Engine(BenchEngine),
    Perplexity(Perplexity),
}

/// Time every op on named shapes of real models, against the copy bandwidth and the matrix ceiling that this device reaches
///
/// The median of 30 runs, each after the caches were overwritten, by the device's own clock. With --dtype f32: in f32.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa bench ops --csv ops.csv
  mpa bench ops --filter attention --backend cpu
  mpa bench ops --shapes --json")]
pub struct BenchOps {
    /// Only rows whose op or shape contains this, and the two ceilings
    #[arg(long, value_name = "NAME", default_value = "")]
    pub filter: String,
    /// Where the rows go as well (CSV)
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Cut the shapes down and run them once: shows that they run, measures nothing
    #[arg(long)]
    pub quick: bool,
    /// Run nothing: list the shapes, with the bytes and floating-point operations that they take
    #[arg(long)]
    pub shapes: bool,
}

/// Time a whole model of a real one's size with random weights: the first token and decoding, or steps of LoRA training
///
/// Of the fastest of --runs, after one that is not counted. Prompts are a picture of noise and random words.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa bench model --shape smolvlm-500m --batch 32
  mpa bench model --shape smolvlm-500m --train --batch 8 --tiles 17 --new 8
  mpa bench model --shape smolvlm-256m --train --write peer
  mpa bench model --model smollm2-int8 --tiles 0")]
pub struct BenchModel {
    /// smolvlm-256m, smolvlm-500m, smolvlm-2.2b, qwen2-vl-2b, qwen2-vl-7b; smollm2-135m, text alone; tiny and qwen2-vl-tiny for tests
    #[arg(long, value_name = "NAME", required_unless_present = "model")]
    pub shape: Option<String>,
    /// Instead of a shape a checkpoint folder (without --train): of `mpa quantize`, for the memory that a model takes which need not be quantised
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["shape", "train", "write"])]
    pub model: Option<String>,
    #[command(flatten)]
    pub loading: Loading,
    /// Prompts, or samples of a step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = batch)]
    pub batch: usize,
    /// Tiles of each prompt's picture: 1, or 17 as of a large one; 0: no picture
    #[arg(long, value_name = "N", default_value = "1", value_parser = ["0", "1", "17"])]
    pub tiles: String,
    /// Words of a prompt, a token each
    #[arg(long, value_name = "N", default_value_t = 90)]
    pub words: usize,
    /// Tokens to decode, or words of the answers to train on
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub new: usize,
    /// Repetitions, or steps
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    pub runs: usize,
    /// Train adapters on the text tower instead; in int8 nothing is trained
    #[arg(long, conflicts_with_all = ["int8", "kv_cache", "min_pixels", "max_pixels"])]
    pub train: bool,
    /// With --train: run blocks again in the backward
    #[arg(long)]
    pub recompute: bool,
    /// Where the rows go as well (CSV, as those of `bench ops`)
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Measure nothing: write the checkpoint, an adapter and a batch, for a peer to do the same with, into this new or empty folder
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// Time what a teacher does with pictures: annotate each, and answer a question about it; with a model of a real one's size and random weights
///
/// Pictures are 512 x 512 JPEGs of noise; they are read and cut up on another thread meanwhile. One batch goes before, uncounted.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa bench engine --shape qwen2-vl-7b --int8 --pictures 512 --batch 64
  mpa bench engine --shape smolvlm-500m --kv-cache int8")]
pub struct BenchEngine {
    /// smolvlm-256m, smolvlm-500m, smolvlm-2.2b, qwen2-vl-2b, qwen2-vl-7b; tiny and qwen2-vl-tiny for tests
    #[arg(long, value_name = "NAME")]
    pub shape: String,
    #[command(flatten)]
    pub loading: Loading,
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub pictures: usize,
    /// Completions at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = batch)]
    pub batch: usize,
    /// Tiles of a picture: 1, or 17 as of a large one
    #[arg(long, value_name = "N", default_value = "1", value_parser = ["1", "17"])]
    pub tiles: String,
    /// Words beside the picture, a token each
    #[arg(long, value_name = "N", default_value_t = 90)]
    pub words: usize,
    /// Tokens of an annotation
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub new: usize,
    /// Where the row goes as well (CSV, as those of `bench ops`)
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

/// Measure how well a model predicts a text, and how often another one would choose the same next token
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa bench perplexity --model checkpoints/smollm2 --text book.txt
  mpa bench perplexity --model checkpoints/smollm2 --int8 --reference checkpoints/smollm2 --text book.txt")]
pub struct Perplexity {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub loading: Loading,
    /// A model to compare with, with the same tokenizer
    #[arg(long, value_name = "MODEL")]
    pub reference: Option<String>,
    /// UTF-8 text; several are read one after the other
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub text: Vec<PathBuf>,
    /// Only the first tokens
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Tokens that are read together; the next window begins anew
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub window: usize,
}
