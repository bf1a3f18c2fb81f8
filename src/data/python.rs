//! Text as Python takes it: the public evaluators are Python programs, and their scores hang on what `split()` and `float()` do.
use std::sync::LazyLock;

use regex::Regex;

/// `str.isspace` for one character: Unicode's white space, and the four separators U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.split()`.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// `re`'s `\d`, which is Unicode's Nd.
pub fn is_digit(c: char) -> bool {
    // `None` cannot be: the pattern is constant.
    static DIGIT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\d").ok());
    match c.is_ascii() {
        true => c.is_ascii_digit(),
        false => DIGIT.as_ref().is_some_and(|digit| digit.is_match(c.encode_utf8(&mut [0; 4]))),
    }
}

/// The value of a decimal digit. Unicode has Nd in runs of whole tens that begin with a zero.
fn digit(c: char) -> Option<char> {
    if c.is_ascii() || !is_digit(c) {
        return None;
    }
    let code = u32::from(c);
    let before = (1..=code).take_while(|&back| char::from_u32(code - back).is_some_and(is_digit)).count();
    char::from_digit(before as u32 % 10, 10)
}

/// `float(text)`; `None` where that is a ValueError. It takes white space around, digits of any script, `_` between digits, `inf`, `infinity`
/// and `nan` in any case; what is too large becomes infinite.
pub fn float(text: &str) -> Option<f64> {
    // As CPython has it: in a text that is not ASCII, other scripts' spaces and digits are first replaced. U+001C to U+001F are no space here.
    let ascii: String = text
        .chars()
        .map(|c| match c {
            c if !c.is_ascii() && is_space(c) => ' ',
            c => digit(c).unwrap_or(c),
        })
        .collect();
    let text = ascii.trim_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let bytes = text.as_bytes();
    let between = |i: usize| {
        let digit = |at: Option<&u8>| at.is_some_and(u8::is_ascii_digit);
        i > 0 && digit(bytes.get(i - 1)) && digit(bytes.get(i + 1))
    };
    if bytes.iter().enumerate().any(|(i, &byte)| byte == b'_' && !between(i)) {
        return None;
    }
    // The rest of the grammar is the same as Rust's.
    text.replace('_', "").parse().ok()
}
