//! Commands on benchmarks, and scores.
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::{Ask, Loading};
use crate::data::benchmarks::{Benchmark, Files};

/// The files of one split of a benchmark.
#[derive(Args)]
pub struct Split {
    /// Which benchmark
    #[arg(long, value_enum, value_name = "NAME")]
    pub benchmark: Benchmark,
    /// Its annotations as downloaded, a list of the paper's code, or JSONL
    #[arg(long, value_name = "FILE")]
    pub annotations: PathBuf,
    /// okvqa: its questions, which lie in a file of their own
    #[arg(long, value_name = "FILE")]
    pub questions: Option<PathBuf>,
}

impl Split {
    pub fn files(&self) -> Files<'_> {
        let questions: Option<&Path> = self.questions.as_deref();
        Files { benchmark: self.benchmark, annotations: &self.annotations, questions }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Official {
    /// The benchmark's own
    Official,
    /// The paper's: the most frequent answer is found inside the prediction
    Paper,
}

/// Score predictions on TextVQA, ST-VQA, ChartQA or OK-VQA, as the public evaluators do
///
/// Predictions are JSON lines with question_id and answer. A question without one scores 0 and is counted as missing; two different ones for a
/// question are an error. docs/benchmarks.md says what each metric computes.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa score --benchmark textvqa --annotations TextVQA_0.5.1_val.json --predictions predictions.jsonl
  mpa score --benchmark okvqa --annotations mscoco_val2014_annotations.json --predictions predictions.jsonl --per-question scores.jsonl
  mpa score --benchmark chartqa --annotations test_human.json --predictions predictions.jsonl --metric paper --json")]
pub struct Score {
    #[command(flatten)]
    pub split: Split,
    /// JSONL with question_id and answer
    #[arg(long, value_name = "FILE")]
    pub predictions: PathBuf,
    /// What is computed
    #[arg(long, value_enum, value_name = "NAME", default_value = "official")]
    pub metric: Official,
    /// Where each question's score goes (JSONL)
    #[arg(long, value_name = "FILE")]
    pub per_question: Option<PathBuf>,
}

/// Look at data before it is used
#[derive(Subcommand)]
pub enum Data {
    Check(DataCheck),
}

/// Verify a benchmark's download: counts, missing and unreadable pictures, ids that are there twice, questions without answers
///
/// Exit code 1 if something is wrong with it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa data check --benchmark stvqa --annotations train_task_1.json --images stvqa
  mpa data check --benchmark okvqa --annotations mscoco_val2014_annotations.json \\
    --questions OpenEnded_mscoco_val2014_questions.json --images val2014 --json")]
pub struct DataCheck {
    #[command(flatten)]
    pub split: Split,
    /// Where its pictures are; without it they are not looked for
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
}

/// Score a model on questions with known answers, or on a benchmark
///
/// Writes predictions.jsonl and scores.json. `accuracy`: the prediction equals one of the answers, in lower case, without punctuation
/// around it. `contains`: one of the answers is found inside it (as in `select`). With --benchmark, the score is the official one (see `mpa score`),
/// and per_question.jsonl and submission.json, in the benchmark's format, are written too.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa evaluate --model student --adapter leveled --questions val.jsonl --out scores
  mpa evaluate --model student --benchmark textvqa --annotations TextVQA_0.5.1_val.json --images train_images --out scores
  mpa evaluate --model student --benchmark okvqa --annotations mscoco_val2014_annotations.json \\
    --questions OpenEnded_mscoco_val2014_questions.json --images val2014 --out scores")]
pub struct Evaluate {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub loading: Loading,
    /// Folder of a LoRA adapter (PEFT layout)
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// JSONL with `question`, `answer` or `answers`, and mostly `image`; with --benchmark okvqa, its questions as downloaded
    #[arg(long, value_name = "FILE", required_unless_present = "benchmark")]
    pub questions: Option<PathBuf>,
    /// Score on this benchmark
    #[arg(long, value_enum, value_name = "NAME", requires_all = ["annotations", "images"])]
    pub benchmark: Option<Benchmark>,
    /// The benchmark's annotations as downloaded, a list of the paper's code, or JSONL
    #[arg(long, value_name = "FILE", requires = "benchmark")]
    pub annotations: Option<PathBuf>,
    /// The benchmark's pictures
    #[arg(long, value_name = "DIR", requires = "benchmark")]
    pub images: Option<PathBuf>,
    /// Where predictions.jsonl and scores.json go
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub ask: Ask,
}
