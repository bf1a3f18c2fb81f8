//! When two answers are the same.
use regex::Regex;

use crate::error::{Error, Result};

/// The paper's released code: lower-case, then drop everything but letters, digits and `_` (what Python's `\w` is: Unicode's L and N).
pub struct Norm {
    drop: Regex,
}

impl Norm {
    pub fn new() -> Result<Norm> {
        let drop = Regex::new(r"[^\p{L}\p{N}_]+").map_err(|e| Error::Failure(e.to_string()))?;
        Ok(Norm { drop })
    }

    pub fn apply(&self, text: &str) -> String {
        self.drop.replace_all(&text.to_lowercase(), "").into_owned()
    }

    /// Whether a character of a lowered text stays.
    pub fn keeps(&self, c: char) -> bool {
        !self.drop.is_match(c.encode_utf8(&mut [0; 4]))
    }

    /// `answer` is found inside `prediction`, both normalised; the empty answer is inside every one.
    pub fn contains(&self, prediction: &str, answer: &str) -> bool {
        self.apply(prediction).contains(&self.apply(answer))
    }

    pub fn equal(&self, prediction: &str, answer: &str) -> bool {
        self.apply(prediction) == self.apply(answer)
    }
}

/// For the accuracy: lower-case, white space collapsed, punctuation at both ends dropped. What belongs to a number stays: `-5`, also of `-$5` and
/// with the minus of typesetters, but not of `- 5`, as lists have it; and `0.5` is the same as `.5`.
pub fn plain(text: &str) -> String {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    let tail = text.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '%');
    let head = tail.trim_start_matches(|c: char| !c.is_alphanumeric());
    if !head.starts_with(|c: char| c.is_numeric()) {
        return head.to_string();
    }
    let before = &tail[..tail.len() - head.len()];
    let (before, whole) = match before.strip_suffix('.') {
        Some(before) if !before.ends_with('.') => (before, "0."),
        _ => (before, ""),
    };
    let sign = before.trim_end_matches(['$', '€', '£', '¥']).ends_with(['-', '−']);
    format!("{}{whole}{head}", if sign { "-" } else { "" })
}

/// `prediction` equals one of `answers` after `plain`. An answer that is nothing but punctuation is compared as it is.
pub fn correct(prediction: &str, answers: &[&str]) -> bool {
    let normal = |text: &str| match plain(text) {
        empty if empty.is_empty() => text.trim().to_string(),
        plain => plain,
    };
    let got = normal(prediction);
    answers.iter().any(|answer| normal(answer) == got)
}
