//! What the command line accepts.
mod ablate;
mod benchmark;
mod device;
mod loading;
mod report;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::models::int8::Parts;
use crate::mpa::config::{self, Bad, MAX_BATCH};
use crate::mpa::level::Settings;
use crate::mpa::prompts;
use crate::mpa::select::Rule;
pub use ablate::Ablate;
pub use benchmark::{Data, DataCheck, Evaluate, Official, Score};
pub use device::{Bench, BenchEngine, BenchModel, BenchOps, Perplexity, Selftest};
pub use loading::{Compute, FloatType, Loading, Pixels};
pub use report::Report;

/// The Model Parity Aligner: a large vision-language model finds what a small one gets wrong on unlabelled pictures, and levels it
#[derive(Parser)]
#[command(name = "mpa", version, max_term_width = 100, after_help = GENERAL)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object on stdout
    #[arg(long, global = true, display_order = 100)]
    pub json: bool,
    /// Say more on stderr; twice: even more
    #[arg(short, long, global = true, display_order = 101, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Show no progress on stderr
    #[arg(short, long, global = true, display_order = 102, conflicts_with = "verbose")]
    pub quiet: bool,
}

#[derive(Subcommand)]
pub enum Command {
    Demo(Demo),
    Run(Run),
    Ablate(Ablate),
    Annotate(Annotate),
    Predict(Predict),
    Select(Select),
    Level(Box<Level>),
    Evaluate(Evaluate),
    Score(Score),
    #[command(subcommand)]
    Data(Data),
    Report(Report),
    Generate(Generate),
    Merge(Merge),
    Quantize(Quantize),
    Selftest(Selftest),
    #[command(subcommand)]
    Bench(Bench),
    Doctor(Doctor),
}

const GENERAL: &str = "\
A model is a checkpoint folder in the Hugging Face layout, or the id of one on the hub (owner/name).

Records are JSON lines with the keys id, image, question, answer (or answers) and prediction; other keys are passed through. Without \
`id` a record has its number in the file, from 0. Paths of pictures are relative to the file that names them. A stage that is \
interrupted and started again goes on where its output ends.

Exit codes: 0, 1 for a failure, 2 for a mistake in the arguments or in a file.";

/// Watch the whole loop level a tiny student with a tiny teacher, on pictures drawn for it
///
/// Both models are in this binary; it takes about a minute. With --out, DIR/report.html shows what came of it and `mpa run DIR/config.toml
/// --out OTHER` repeats it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa demo
  mpa demo --out demo --seed 7")]
pub struct Demo {
    /// The run folder; without it nothing is kept
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Other pictures, other questions, other samples
    // TOML, in which the seed is kept, has no larger numbers.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64), allow_negative_numbers = true)]
    pub seed: u64,
    /// Write models, pictures, questions, config.toml and labels (inputs/labelled.jsonl) into --out, and run nothing
    #[arg(long, requires = "out")]
    pub only_write: bool,
}

/// Run the whole loop of a config file: annotate, predict twice, select, level, evaluate
///
/// Goes on where an earlier run stopped. The run folder is --out, else the config's `out`, else the config's own folder if it is called
/// config.toml, else the folder beside it that has its name without the ending.
#[derive(Args)]
#[command(after_help = "\
Example of a config (the run folder's config.toml has the defaults of the rest; [level] takes the options of `mpa level`):
  [models]                  # also: teacher_int8, teacher_kv_cache = \"int8\", min_pixels, max_pixels
  teacher = \"HuggingFaceTB/SmolVLM-Instruct\"
  student = \"checkpoints/SmolVLM-256M-Instruct\"
  [annotate]
  images = \"pictures\"       # a folder, a JSONL file with `image`, or a table that names part of a benchmark (docs/reproduce.md)
  task = \"text\"             # text, chart, knowledge, or a file with the prompt
  [level]
  rehearsal = 0.5           # 0: the paper's method
  arms = [\"leveled\"]        # also: parity_only, all_pseudo, random_subset
  [evaluate]                # optional
  questions = \"val.jsonl\"

Examples:
  mpa run smolvlm.toml
  mpa run smolvlm/config.toml --out again")]
pub struct Run {
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// The run folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Let a model write questions and answers about unlabelled pictures
///
/// What it writes and does not parse as `Question: ...?` and `Answer: ...` is kept with `rejected`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa annotate --model HuggingFaceTB/SmolVLM-Instruct --images pictures --task text --out pseudo.jsonl
  mpa annotate --model teacher --images list.jsonl --task my-prompt.txt --samples 5 --temperature 1 --out pseudo.jsonl")]
pub struct Annotate {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub loading: Loading,
    /// A folder of pictures (.png, .jpg, .jpeg, .webp, also in folders within), or a JSONL file with `image`
    #[arg(long, value_name = "DIR|FILE")]
    pub images: PathBuf,
    /// What to ask for: text, chart, knowledge, or a file with the prompt
    #[arg(long, value_name = "NAME|FILE")]
    pub task: String,
    /// Where the records go (JSONL)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Questions a picture; with several, ids end in #0, #1, ...
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub samples: usize,
    /// 0: always the most likely token
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Draw from the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Tokens that one annotation may take
    #[arg(long, value_name = "N", default_value_t = config::annotation_tokens())]
    pub max_new_tokens: usize,
    /// What is drawn at random depends on it
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Pictures at a time; changes nothing in the result
    #[arg(long, value_name = "N", default_value_t = config::batch(), value_parser = batch)]
    pub batch: usize,
}

/// How questions are put.
#[derive(Args)]
pub struct Ask {
    /// The text the model is given; {question} is replaced
    #[arg(long, value_name = "TEXT", default_value = prompts::ANSWER)]
    pub prompt: String,
    /// Tokens that one answer may take
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_new_tokens: usize,
    /// Questions at a time; changes nothing in the result
    #[arg(long, value_name = "N", default_value_t = config::batch(), value_parser = batch)]
    pub batch: usize,
}

/// Answer the questions of a file; records with `rejected` are left out
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa predict --model teacher --questions pseudo.jsonl --out teacher.jsonl
  mpa predict --model student --adapter leveled --questions val.jsonl --out predictions.jsonl")]
pub struct Predict {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub loading: Loading,
    /// Folder of a LoRA adapter (PEFT layout)
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// JSONL with `question` and mostly `image`
    #[arg(long, value_name = "FILE")]
    pub questions: PathBuf,
    /// Where the records go (JSONL)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub ask: Ask,
}

/// Keep the samples that the teacher answers as annotated and the student does not
///
/// Both files have the same ids. JSON arrays with the keys of the paper's code (question_id, image_path, PA_question, PA_answer,
/// predictions) are read too. Answers are compared in lower case, with everything but letters, digits and _ dropped. What is written has what each
/// said as `teacher` and `student`, in the place of keys of these names.
#[derive(Args)]
#[command(after_help = "\
Example:
  mpa select --teacher teacher.jsonl --student student.jsonl --rule contains --out parity.jsonl")]
pub struct Select {
    /// The teacher's predictions
    #[arg(long, value_name = "FILE")]
    pub teacher: PathBuf,
    /// The student's predictions
    #[arg(long, value_name = "FILE")]
    pub student: PathBuf,
    /// When a prediction is right: it contains the pseudo answer (the paper's code), or equals it. margin: whatever was predicted, keep what the
    /// teacher finds more likely than the student does
    #[arg(long, value_enum, default_value_t = Rule::Contains)]
    pub rule: Rule,
    /// With --rule margin: by how much, in nats a token (mean log-probability of the pseudo answer, teacher less student)
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub margin: f64,
    /// Where the parity set goes: teacher right, student wrong (JSONL)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Where the samples go that both have right [default: beside --out, parity.rehearsal.jsonl for parity.jsonl]
    #[arg(long, value_name = "FILE")]
    pub rehearsal: Option<PathBuf>,
    /// Where the samples go that the teacher contradicts
    #[arg(long, value_name = "FILE")]
    pub rejected: Option<PathBuf>,
}

/// Train a LoRA adapter on the parity set
///
/// Goes on from the last checkpoint in --out. The adapter is written in PEFT's layout.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa level --model student --data parity.jsonl --out leveled
  mpa level --model student --data parity.jsonl --rehearsal 0.5 --rank 32 --epochs 3 --out leveled
  mpa level --model student --data parity.jsonl --batch 32 --out leveled --dry-run")]
pub struct Level {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// JSONL with `question`, `answer` and mostly `image`
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    #[command(flatten)]
    pub pixels: Pixels,
    /// Samples that the student has right, for --rehearsal [default: beside --data, as `select` writes them]
    #[arg(long, value_name = "FILE")]
    pub rehearsal_data: Option<PathBuf>,
    /// Where the adapter and loss.jsonl go
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The text the model is given; {question} is replaced
    #[arg(long, value_name = "TEXT", default_value = prompts::ANSWER)]
    pub prompt: String,
    /// What is drawn at random depends on it
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Train nothing: say how many steps it would be, and the GPU memory that the largest takes (no GPU is needed)
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub settings: Settings,
}

/// Complete one prompt
#[derive(Args)]
#[command(after_help = "\
Example:
  mpa generate --model HuggingFaceTB/SmolVLM-256M-Instruct --image sign.jpg --prompt \"What does the sign say?\"")]
pub struct Generate {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub loading: Loading,
    /// Folder of a LoRA adapter (PEFT layout)
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A picture, put before the text; may be given several times
    #[arg(long = "image", value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// The text
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Tokens that the completion may take
    #[arg(long, value_name = "N", default_value = "128", value_parser = positive)]
    pub max_new_tokens: usize,
    /// 0: always the most likely token
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Draw from the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f32,
    /// What is drawn at random depends on it
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
}

/// Add a LoRA adapter to a model's weights: writes a plain checkpoint folder
#[derive(Args)]
#[command(after_help = "\
Example:
  mpa merge --model student --adapter leveled --out student-leveled")]
pub struct Merge {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Folder of a LoRA adapter (PEFT layout)
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Where the checkpoint goes; a new or empty folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Write a model's checkpoint in int8: half of bf16's bytes, and products at a multiple of its speed
///
/// Weights with a scale for each output channel; activations are quantised by token while the model runs. --calibration smooths outlier channels
/// (SmoothQuant). The folder is in the form of compressed-tensors, and is loaded like any other. docs/quantize.md has measured errors.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa quantize --model Qwen/Qwen2-VL-7B-Instruct --out qwen2-vl-7b-int8
  mpa quantize --model teacher --calibration pictures --out teacher-int8
  mpa quantize --model smollm2 --calibration book.txt --parts text+head --out smollm2-int8")]
pub struct Quantize {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// A folder of pictures, or a text file, that the model reads to see how large its activations become
    #[arg(long, value_name = "DIR|FILE")]
    pub calibration: Option<PathBuf>,
    /// Pictures of the folder that are read, the first by name
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    pub pictures: usize,
    /// Which linear layers become int8: text (the blocks of the text tower), text+head, or all (the vision tower too)
    #[arg(long, value_name = "PARTS", value_enum, default_value = "text")]
    pub parts: Parts,
    /// Leave what layers read as it is, for other programs that read int8 folders in compressed-tensors' form: less exact. Else it is rotated by
    /// Hadamard matrices, which this program alone knows how to read
    #[arg(long)]
    pub no_rotation: bool,
    /// Where the checkpoint goes; a new or empty folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Show what this machine and this binary have to offer: threads, SIMD, memory, GPUs, kernels
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa doctor
  mpa doctor --kernels      # registers, shared memory and occupancy of each")]
pub struct Doctor {
    /// Print what each CUDA kernel takes on each architecture, tab-separated: registers, shared memory, spills, occupancy
    #[arg(long)]
    pub kernels: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_string()),
        Ok(number) => Ok(number),
        Err(e) => Err(format!("{e}")),
    }
}

fn batch(text: &str) -> Result<usize, String> {
    let number = positive(text)?;
    Bad::count("batch", number, MAX_BATCH).map(|()| number).map_err(|bad| bad.what)
}
