//! What the annotator is asked. The three kinds are the paper's; the words are this project's.
use std::fs;
use std::path::Path;

use crate::data::files;
use crate::error::{Error, Result};

/// For TextVQA and ST-VQA: the answer can be read in the picture.
pub const TEXT: &str = "\
Read the text that appears in this picture. Think of one question about that text whose answer can be found in the picture alone, \
without outside knowledge, and give its answer in a word or a short phrase.
Write exactly these two lines and nothing else:
Question: <your question>?
Answer: <your answer>";

/// For ChartQA: the answer follows from the data shown.
pub const CHART: &str = "\
This picture shows a chart. Think of one question about the data in it, such as a value, a comparison, a total or a trend, that can be \
answered from the chart alone, and give its answer as a number, a label or a short phrase.
Write exactly these two lines and nothing else:
Question: <your question>?
Answer: <your answer>";

/// For OK-VQA: the picture is not enough.
pub const KNOWLEDGE: &str = "\
Look at what this picture shows. Think of one question about it that nobody can answer by looking alone, because it also takes general \
knowledge of the world, and give its answer in a word or a short phrase.
Write exactly these two lines and nothing else:
Question: <your question>?
Answer: <your answer>";

/// The paper's prompt for short answers.
pub const ANSWER: &str = "{question} Answer the following question in a single word or phrase.";

/// The prompt of a task: one of the three names, else the text of a file (without white space at its end).
pub fn task(name: &str, folder: &Path) -> Result<String> {
    match named(name) {
        Some(prompt) => Ok(prompt.to_string()),
        None => read(&folder.join(name)),
    }
}

/// The prompt of one of the three names.
pub fn named(name: &str) -> Option<&'static str> {
    match name {
        "text" => Some(TEXT),
        "chart" => Some(CHART),
        "knowledge" => Some(KNOWLEDGE),
        _ => None,
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::input(path, "no such prompt file, and no task of that name (text, chart, knowledge)")
        }
        _ => Error::io(path, e),
    })?;
    let text = files::after_mark(&bytes).map_err(|what| Error::input(path, what))?;
    let text = std::str::from_utf8(text).map_err(|_| Error::input(path, "the prompt is not UTF-8"))?;
    match text.trim_end() {
        "" => Err(Error::input(path, "the prompt is empty")),
        text => Ok(text.to_string()),
    }
}

/// The place of the question in an answer prompt.
pub const PLACE: &str = "{question}";

/// `prompt` with the question put in.
pub fn fill(prompt: &str, question: &str) -> String {
    prompt.replace(PLACE, question)
}
