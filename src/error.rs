//! The one error type. Each variant says where (op, file, line, key), what was expected and what came.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An op was handed a tensor that does not fit.
    #[error("{op}: expected {expected}, got {got}")]
    Op { op: &'static str, expected: String, got: String },
    /// Something in a file the user gave is wrong.
    #[error("{}: {what}", path.display())]
    Input { path: PathBuf, what: String },
    /// The same, with the line (1-based) of a line-oriented file.
    #[error("{}:{line}: {what}", path.display())]
    Line { path: PathBuf, line: usize, what: String },
    /// A wrong argument or a combination of arguments that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The device has no room for a buffer of `wanted` bytes; 0 if that is not known.
    #[error("out of device memory{}", bytes_wanted(*wanted, *in_use))]
    OutOfMemory { wanted: usize, in_use: usize },
    /// A prompt that leaves a model no room for an answer.
    #[error("a prompt of {tokens} tokens, expected 1 to {most} (max_position_embeddings less one)")]
    TooLong { tokens: usize, most: usize },
    /// A picture that a model does not take.
    #[error("a picture of {width}x{height}, expected {expected}")]
    Picture { width: usize, height: usize, expected: String },
    /// Everything else that can fail through no mistake of the user's.
    #[error("{0}")]
    Failure(String),
}

fn bytes_wanted(wanted: usize, in_use: usize) -> String {
    if wanted == 0 { String::new() } else { format!(": {wanted} bytes wanted, {in_use} in use") }
}

impl Error {
    pub fn op(op: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Error::Op { op, expected: expected.into(), got: got.into() }
    }

    pub fn input(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Input { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    pub fn line(path: impl AsRef<Path>, line: usize, what: impl Into<String>) -> Self {
        Error::Line { path: path.as_ref().to_path_buf(), line, what: what.into() }
    }

    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// What an op says, with the model whose weights or settings it did not like.
    pub fn of(self, model: &Path) -> Self {
        match self {
            Error::Op { .. } => Error::Failure(format!("{}: {self}", model.display())),
            other => other,
        }
    }

    /// Exit code of the process: 2 for a user's mistake, 1 for a failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input { .. }
            | Error::Line { .. }
            | Error::Usage(_)
            | Error::TooLong { .. }
            | Error::Picture { .. } => 2,
            // A path that names nothing, or nothing of the kind that is wanted.
            Error::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound | ErrorKind::AlreadyExists => 2,
                ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::PermissionDenied => 2,
                ErrorKind::InvalidInput | ErrorKind::InvalidFilename => 2,
                // A text that is not UTF-8.
                ErrorKind::InvalidData => 2,
                _ => 1,
            },
            Error::Op { .. } | Error::OutOfMemory { .. } | Error::Failure(_) => 1,
        }
    }
}
