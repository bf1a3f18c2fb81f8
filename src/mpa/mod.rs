//! The loop, one file per stage.
//!
//! ```text
//! pictures --annotate--> annotate.jsonl --predict x2--> teacher.jsonl, student.jsonl --select--> parity.jsonl, rehearsal.jsonl
//!          --level--> adapter --evaluate--> scores.json
//! ```
//!
//! `run.rs` strings them together in a run folder (`config.rs` reads its settings, `source.rs` the parts of benchmarks that it names, `folder.rs`
//! lays it out); `answer.rs` is the part that all stages which ask a model share, and `teacher.rs` the teacher's two at once; `engine.rs` is the
//! one door to models; `report.rs` shows a finished run; `ablate.rs` runs a grid of loops that share their stages.

pub mod ablate;
pub mod annotate;
pub mod answer;
pub mod config;
pub mod engine;
pub mod evaluate;
pub mod folder;
pub mod level;
pub mod predict;
pub mod progress;
pub mod prompts;
pub mod report;
pub mod run;
pub mod score;
pub mod select;
pub mod source;
mod teacher;
