//! The demo models' tokenizer: whole words, each with the blank before it, in the Hugging Face format.
use serde_json::{Value, json};

use crate::demo::scene::{Color, MAX_VALUE, Shape, WORDS};

/// What the teacher is asked in order to write a question and an answer.
pub const ANNOTATE: &str = "annotate";
/// What a model is asked in order to read a picture aloud (the first exercise of the recipe).
pub const READ: &str = "read";

/// Special tokens; their place is their id.
pub const SPECIAL: [&str; 7] = [
    "<unk>",
    "<pad>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
];
pub const PAD: usize = 1;
pub const START: usize = 2;
pub const END: usize = 3;
pub const IMAGE: usize = 6;

/// Words that start a turn, and so have no blank before them.
const STARTS: [&str; 7] = ["User:", "\nAssistant:", ANNOTATE, READ, "how", "which", "what"];
/// Words that have one.
const WITHIN: [&str; 23] = [
    "how",
    "which",
    "what",
    "Question:",
    "Answer:",
    "high",
    "highest",
    "lowest",
    "is",
    "are",
    "the",
    "there",
    "many",
    "first",
    "last",
    "bar",
    "bars",
    "color",
    "shape",
    "shapes",
    "sign",
    "does",
    "say",
];

/// A word with its blank, a role with its line break, one digit, or any other character.
const PATTERN: &str = r"[ ]?\d|[ \n]?[^\W\d]+:?|[^\w\s]|\s";

/// All tokens in the order of their ids.
pub fn tokens() -> Vec<String> {
    let mut all: Vec<String> = SPECIAL.map(String::from).to_vec();
    all.extend(STARTS.map(String::from));
    all.push("?".to_string());
    all.extend(WITHIN.iter().map(|w| format!(" {w}")));
    all.extend((0..=MAX_VALUE).map(|d| format!(" {d}")));
    all.extend(Color::ALL.iter().map(|c| format!(" {}", c.name())));
    all.extend(Shape::ALL.iter().map(|s| format!(" {}", s.name())));
    all.extend(WORDS.iter().map(|w| format!(" {w}")));
    all
}

/// tokenizer.json.
pub fn tokenizer() -> Value {
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        tokens().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false,
        },
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": SPECIAL[0]},
    })
}

/// tokenizer_config.json.
pub fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 128,
        "padding_side": "left",
        "clean_up_tokenization_spaces": false,
        "bos_token": SPECIAL[START],
        "eos_token": SPECIAL[END],
        "pad_token": SPECIAL[PAD],
        "unk_token": SPECIAL[0],
        "additional_special_tokens": [SPECIAL[4], SPECIAL[IMAGE], SPECIAL[END]],
    })
}

/// chat_template.jinja, as SmolVLM's: the role, its content, the end of the turn.
pub const CHAT_TEMPLATE: &str = concat!(
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}",
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}",
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}",
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n",
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
);
