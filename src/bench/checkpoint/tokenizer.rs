//! A tokenizer of numbered words.

use serde_json::{Map, Value, json};

use super::{GRID, WORDS};

/// Whole words with the blank before them.
pub(super) fn tokenizer(special: &[&str]) -> Value {
    let places = (1..=GRID).flat_map(|row| (1..=GRID).map(move |col| format!("<row_{row}_col_{col}>")));
    let special: Vec<String> = special.iter().copied().map(String::from).chain(places).collect();
    let words = ["User:", "User", ":", "\nAssistant:", "Assistant:"].map(String::from).into_iter();
    let words = words.chain((0..WORDS).map(|i| format!(" w{i}")));
    let vocabulary: Map<String, Value> =
        special.iter().cloned().chain(words).enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added = |(id, content): (usize, &String)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": r"[ \n]?[^\s:]+:?|\s"}, "behavior": "Isolated", "invert": false,
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": special[0]},
    })
}
