//! Damaged checkpoint files: whatever they hold, reading ends with a value or with an error that is the user's to mend. It never
//! panics, and never takes memory beyond what the files hold and a fixed allowance.
//! `PROPTEST_CASES=100000 cargo test --release --test fuzz` looks longer.
mod damage;
mod memory;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mpa::error::Error;
use mpa::models::config::Config;
use mpa::models::generate::Request;
use mpa::models::image::{ImageProcessor, Rgb};
use mpa::models::prompt::{Content, Message, Placeholders, Prompter};
use mpa::models::vlm::Vlm;
use mpa::models::weights::Weights;
use mpa::ops::sample::Sampling;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};
use tempfile::TempDir;

use damage::{Change, changes, damage_bytes, damage_json};
use memory::within;

/// A value, or an error that is the user's to mend and says something.
#[track_caller]
fn mendable<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().len() > 10, "{error}");
            None
        }
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smolvlm").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap()
}

fn json_of(name: &str) -> Value {
    serde_json::from_slice(&bytes_of(name)).unwrap()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// The same cases on every machine.
fn cases(usual: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// The text of a file after changes to its values, or to its bytes.
fn damaged(name: &str, in_values: bool, changes: &[Change]) -> Vec<u8> {
    if in_values {
        let mut value = json_of(name);
        damage_json(&mut value, changes);
        value.to_string().into_bytes()
    } else {
        let mut bytes = bytes_of(name);
        damage_bytes(&mut bytes, changes);
        bytes
    }
}

/// Memory for a configuration or a header of these sizes: some kilobytes of text, parsed; and for what other tests prepare meanwhile.
const SMALL: usize = 8 << 20;
/// Memory for the golden model at work, and for stand-ins of tensors that a configuration asks for in vain.
const MODEL: usize = 32 << 20;
/// Memory for the tokenizer, whose patterns are compiled.
const PROMPT: usize = 32 << 20;

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn configs(in_values: bool, config in changes(), generation in changes()) {
        let files = [
            ("config.json", damaged("config.json", in_values, &config)),
            ("generation_config.json", damaged("generation_config.json", in_values, &generation)),
        ];
        let both = folder(&[(files[0].0, &files[0].1), (files[1].0, &files[1].1)]);
        within(SMALL, || mendable(Config::read(both.path())));
        let one = folder(&[("config.json", &files[0].1)]);
        if let Some(config) = within(SMALL, || mendable(Config::read(one.path()))) {
            prop_assert!(config.vision.is_none_or(|v| v.tile.is_none() || v.tile_tokens() > 0));
            prop_assert!(config.text.heads * config.text.head_size > 0);
        }
    }
}

/// The header of the golden weights, without the data.
fn header() -> Value {
    let bytes = bytes_of("model.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    serde_json::from_slice(&bytes[8..8 + length]).unwrap()
}

/// Takes everything that a file offers, and something that it does not.
fn take_all(path: &Path) {
    let Some(mut weights) = mendable(Weights::open_file(path)) else { return };
    for name in weights.names() {
        if let Some(tensor) = mendable(weights.take_any(&name)) {
            assert_eq!(tensor.bytes().unwrap().len(), tensor.len() * tensor.dtype().size(), "{name}");
            assert!(tensor.rows() * tensor.cols() == tensor.len() || tensor.is_empty(), "{name}");
        }
    }
    weights.take("not there", &[1 << 50, 1 << 50]);
    assert!(mendable(weights.finish()).is_none());
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn safetensors_with_damaged_headers(header_changes in changes(), length: u8, data in 0usize..20_000) {
        let mut header = header();
        // A few tensors of a few kilobytes, so that damage often meets what is still consistent.
        header.as_object_mut().unwrap().retain(|name, _| name.contains("layers.0.layer_norm"));
        let mut start = 0;
        for info in header.as_object_mut().unwrap().values_mut() {
            info["data_offsets"] = json!([start, start + 192]);
            start += 192;
        }
        damage_json(&mut header, &header_changes);
        let header = header.to_string();
        let claimed = if length == 0 { u64::MAX } else { header.len() as u64 };
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + if length < 128 { start } else { data }, 7);
        let folder = folder(&[("x.safetensors", &bytes)]);
        within(SMALL, || take_all(&folder.path().join("x.safetensors")));
    }

    #[test]
    fn safetensors_with_damaged_bytes(changes in changes()) {
        let mut bytes = bytes_of("fixtures/multi.safetensors");
        damage_bytes(&mut bytes, &changes);
        let folder = folder(&[("x.safetensors", &bytes)]);
        within(SMALL, || take_all(&folder.path().join("x.safetensors")));
    }

    #[test]
    fn indices(in_values: bool, changes in changes()) {
        let index = json!({"metadata": {"total_size": 22_776}, "weight_map": {
            "ref/connector_output": "a.safetensors", "ref/logits_last": "a.safetensors", "x": "b.safetensors",
        }});
        let mut bytes = index.to_string().into_bytes();
        if in_values {
            let mut index = index;
            damage_json(&mut index, &changes);
            bytes = index.to_string().into_bytes();
        } else {
            damage_bytes(&mut bytes, &changes);
        }
        let shard = bytes_of("fixtures/multi.safetensors");
        let folder = folder(&[("model.safetensors.index.json", &bytes), ("a.safetensors", &shard)]);
        within(SMALL, || mendable(Weights::open(folder.path()).and_then(Weights::finish)));
    }
}

/// Loads the golden weights under a damaged configuration; a model that loads all the same answers a question, or says why not.
fn load_and_answer(configs: &[(&str, &[u8])]) {
    let folder = folder(configs);
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
        "preprocessor_config.json",
    ] {
        std::fs::copy(golden(name), folder.path().join(name)).unwrap();
    }
    let Some(vlm) = mendable(Vlm::load(folder.path().to_str().unwrap(), None)) else { return };
    let picture = Arc::new(Rgb { width: 5, height: 3, data: vec![100; 45] });
    let request = Request {
        messages: vec![Message::new("user", vec![Content::Image, Content::Text("What?".to_string())])],
        images: vec![picture],
        tiles: vec![],
        max_new_tokens: 2,
        sampling: Sampling { temperature: 0.0, top_p: 1.0 },
        samples: 1,
        seed: 1,
        draft: None,
    };
    if let Err(error) = vlm.generate(&[request]) {
        assert!(error.to_string().len() > 10, "{error}");
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn models(config in changes(), generation in changes()) {
        let config = damaged("config.json", true, &config);
        let generation = damaged("generation_config.json", true, &generation);
        let files = [("config.json", config.as_slice()), ("generation_config.json", generation.as_slice())];
        within(MODEL, || load_and_answer(&files));
    }
}

/// Reads a folder's prompter and puts a conversation through it.
fn converse(folder: &Path) {
    let Some(prompter) = mendable(Prompter::read(folder, Placeholders::Tiles(3))) else { return };
    let content =
        vec![Content::Image, Content::Text("What is <image> é\u{FDD0}? <end_of_utterance>".to_string())];
    let Some(text) = mendable(prompter.render(&[Message::new("user", content)], true)) else { return };
    let text = prompter.expand(&text, &[(2, 1)]).unwrap();
    // A strange but readable tokenizer may fail at its work.
    for special in [true, false] {
        if let Ok(ids) = prompter.encode(&text, special) {
            let _ = prompter.decode(&ids, special);
        }
        let _ = prompter.decode(&[0, 5, 439, 440, u32::MAX], special);
    }
}

fn converse_with(changed: &str, bytes: &[u8]) {
    let mut files: Vec<(&str, Vec<u8>)> =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.json"]
            .map(|n| (n, bytes_of(n)))
            .into();
    files.retain(|(name, _)| *name != changed);
    files.push((changed, bytes.to_vec()));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let folder = folder(&files);
    let templates = if changed == "chat_template.jinja" { TEMPLATE } else { 0 };
    within(PROMPT + templates, || converse(folder.path()));
}

/// Memory for what a template makes: twice 64 MB, since a string and its copy are there together.
const TEMPLATE: usize = 128 << 20;

#[test]
fn templates_that_grow_without_end() {
    let doubling =
        "{% set ns = namespace(x='ab') %}{% for i in range(99999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    for template in [
        doubling,
        "{% for i in range(99999) %}{{ 'ab' * 1000000 }}{% endfor %}",
        "{{ 'ab' * 49999999 }}",
        "{{ [0] * 9999999 }}",
        "{{ ('ab' * 9999999) | tojson }}",
        "{{ '%99999999d' | format(1) }}",
        "{{ 'x' | center(999999999) }}{{ 'x'.ljust(999999999) }}",
        "{{ 'x\nx' | indent(999999999) }}{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{{ ('y' * 9999).join(('x' * 9999) | list) }}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}",
    ] {
        converse_with("chat_template.jinja", template.as_bytes());
    }
}

#[test]
fn headers_of_many_small_entries() {
    let with_entries = |n: usize| {
        let entry = |i| format!(r#""{i:06}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        let header = format!("{{{}}}", (0..n).map(entry).collect::<Vec<String>>().join(","));
        folder(&[("x.safetensors", &[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat())])
    };
    // Also made under `within`, so that it does not count in a test that runs at the same time.
    let (too_long, longest) = within(64 << 20, || (with_entries(160_000), with_entries(140_000)));
    within(SMALL, || take_all(&too_long.path().join("x.safetensors")));
    within(160 << 20, || take_all(&longest.path().join("x.safetensors")));
}

/// Also made under `within`, as above. Values take many times the memory of their text, so what is too long is not taken apart.
#[test]
fn wide_settings_and_records_are_refused_without_much_memory() {
    let list = |before: &str, after: &str| format!("{before}[{}0]{after}", "0,".repeat(8 << 20)).into_bytes();
    let wide = within(256 << 20, || {
        folder(&[
            ("preprocessor_config.json", &list("{\"size\":", "}")),
            ("released.json", &list("[{\"question_id\":", "}]")),
            ("lines.jsonl", &list("{\"id\":", "}")),
            ("run.toml", &list("seed = ", "")),
        ])
    });
    let at = |name: &str| wide.path().join(name);
    within(SMALL, || mendable(ImageProcessor::read(wide.path()).map(drop)));
    within(SMALL, || mendable(mpa::mpa::config::Config::read(&at("run.toml"))));
    within(16 << 20, || mendable(mpa::data::released::read(&at("lines.jsonl"))));
    // The text of an element, in a buffer that is doubled as it grows.
    within(64 << 20, || mendable(mpa::data::released::read(&at("released.json"))));
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn tokenizers(in_values: bool, changes in changes()) {
        converse_with("tokenizer.json", &damaged("tokenizer.json", in_values, &changes));
    }

    #[test]
    fn tokenizer_configs(in_values: bool, changes in changes()) {
        converse_with("tokenizer_config.json", &damaged("tokenizer_config.json", in_values, &changes));
    }

    #[test]
    fn chat_templates(changes in changes(), words in prop::collection::vec(0usize..WORDS.len(), 0..12), at: u16) {
        let mut template = json_of("chat_template.json")["chat_template"].as_str().unwrap().as_bytes().to_vec();
        damage_bytes(&mut template, &changes[..changes.len() / 2]);
        let at = at as usize % (template.len() + 1);
        template.splice(at..at, words.iter().flat_map(|&w| WORDS[w].bytes()));
        converse_with("chat_template.jinja", &template);
    }
}

/// Pieces of templates that do much, or go wrong.
const WORDS: [&str; 22] = [
    "{% for i in range(99999) %}",
    "{% endfor %}",
    "{% set ns = namespace(x='ab') %}",
    "{% set ns.x = ns.x ~ ns.x %}",
    "{{ ns.x }}",
    "{{ 'ab' * 9999999999 }}",
    "{{ [0] * 9999999 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ ''.join(messages) }}",
    "{{ messages | tojson(indent=99) }}",
    "{{ messages[0].content[99].text.split('')[-1:0:-0] }}",
    "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}",
    "{{ f('ab') }}",
    "{% if",
    "{% break %}",
    "{{ strftime_now('%') }}",
    "{{ raise_exception('no') }}",
    "{{ 1 // 0 }}",
    "{{ 9223372036854775807 * 9 ** 99 }}",
    "{{ '<image>' }}",
    "{% include 'chat template' %}",
    "{{ ((((((((((((((((((((((((((((((1)))))))))))))))))))))))))))))) }}",
];
