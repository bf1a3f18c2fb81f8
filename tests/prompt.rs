//! Prompts against what transformers made of the same conversations, and what templates and texts may contain.
mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mpa::models::config::Config;
use mpa::models::prompt::{Content, Message, Placeholders, Prompter};
use safetensors::SafeTensors;
use serde_json::Value;

fn smolvlm() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smolvlm")
}

/// The committed fixtures, and the sets that MPA_GOLDEN names.
fn golden_folders() -> Vec<PathBuf> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let more = std::env::var("MPA_GOLDEN").unwrap_or_default();
    let sets = std::iter::once(committed).chain(more.split(':').filter(|s| !s.is_empty()).map(PathBuf::from));
    let folders = sets.flat_map(|set| std::fs::read_dir(set).unwrap()).map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|f| f.join("fixtures/report.json").exists()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

fn prompter() -> Prompter {
    let folder = smolvlm();
    Prompter::read(&folder, Placeholders::of(&Config::read(&folder).unwrap())).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn messages(conversation: &Value) -> Vec<Message> {
    let content = |part: &Value| match part["type"].as_str().unwrap() {
        "image" => Content::Image,
        _ => Content::Text(part["text"].as_str().unwrap().to_string()),
    };
    let message = |m: &Value| {
        Message::new(
            m["role"].as_str().unwrap(),
            m["content"].as_array().unwrap().iter().map(content).collect(),
        )
    };
    conversation.as_array().unwrap().iter().map(message).collect()
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", vec![Content::Image, Content::Text(text.to_string())])]
}

/// input_ids of a fixture without the padding on the left: one row a prompt.
fn input_ids(file: &Path) -> Vec<Vec<u32>> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let view = tensors.tensor(name).unwrap();
        let numbers = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        (numbers.collect::<Vec<_>>(), view.shape()[1])
    };
    let (ids, width) = read("input/input_ids");
    let (mask, _) = read("input/attention_mask");
    let kept = ids.chunks(width).zip(mask.chunks(width));
    kept.map(|(i, m)| i.iter().zip(m).filter(|p| *p.1 == 1).map(|p| *p.0 as u32).collect()).collect()
}

/// Rows and columns of each picture, read off the row and column tokens between two global tiles.
fn grids(prompter: &Prompter, ids: &[u32]) -> Vec<(usize, usize)> {
    let mut tokens = BTreeMap::new();
    for row in 1..=6 {
        for col in 1..=6 {
            tokens.insert(prompter.token_id(&format!("<row_{row}_col_{col}>")).unwrap(), (row, col));
        }
    }
    let global = prompter.token_id("<global-img>").unwrap();
    let (mut grids, mut last) = (Vec::new(), (0, 0));
    for id in ids {
        if *id == global {
            grids.push(std::mem::take(&mut last));
        } else if let Some(&place) = tokens.get(id) {
            last = place;
        }
    }
    grids
}

#[test]
fn tokenizer_cases_are_equal() {
    for folder in golden_folders() {
        let prompter = Prompter::read(&folder, Placeholders::Tiles(4)).unwrap();
        let cases = json(&folder.join("fixtures/tokenizer_cases.json"));
        assert!(cases.as_array().unwrap().len() > 3);
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let what = format!("{} {text:?}", folder.display());
            assert_eq!(prompter.encode(text, true).unwrap(), ids(&case["ids"]), "{what}");
            let plain = prompter.encode(text, false).unwrap();
            assert_eq!(plain, ids(&case["no_special"]), "{what}");
            let decoded = prompter.decode(&plain, true).unwrap();
            assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{what}");
        }
    }
}

#[test]
fn prompts_are_equal() {
    for folder in golden_folders() {
        let prompter = Prompter::read(&folder, Placeholders::Tiles(4)).unwrap();
        let report = json(&folder.join("fixtures/report.json"));
        for (name, case) in report["cases"].as_object().unwrap() {
            let conversations = case["conversations"].as_array().unwrap();
            for (conversation, prompt) in conversations.iter().zip(case["prompts"].as_array().unwrap()) {
                let text = prompter.render(&messages(conversation), true).unwrap();
                assert_eq!(text, prompt.as_str().unwrap(), "{} {name}", folder.display());
            }
        }
    }
}

#[test]
fn input_ids_are_equal() {
    let (folder, prompter) = (smolvlm(), prompter());
    let report = json(&folder.join("fixtures/report.json"));
    for name in ["single", "batch", "multi", "text"] {
        let rows = input_ids(&folder.join(format!("fixtures/{name}.safetensors")));
        let conversations = report["cases"][name]["conversations"].as_array().unwrap();
        assert_eq!(rows.len(), conversations.len());
        for (want, conversation) in rows.iter().zip(conversations) {
            let text = prompter.render(&messages(conversation), true).unwrap();
            let text = prompter.expand(&text, &grids(&prompter, want)).unwrap();
            assert_eq!(&prompter.encode(&text, true).unwrap(), want, "{name}");
        }
    }
}

#[test]
fn generated_text_is_equal() {
    let report = json(&smolvlm().join("fixtures/report.json"));
    let prompter = prompter();
    for (name, case) in report["cases"].as_object().unwrap() {
        for (i, generated) in case["generated_ids"].as_array().unwrap().iter().enumerate() {
            let text = |special| prompter.decode(&ids(generated), special).unwrap();
            assert_eq!(text(false), case["generated_text"][i].as_str().unwrap(), "{name}");
            assert_eq!(text(true), case["generated_text_raw"][i].as_str().unwrap(), "{name}");
        }
    }
}

#[test]
fn training_text_has_the_answer_and_the_end_of_the_turn() {
    let report = json(&smolvlm().join("fixtures/report.json"));
    let texts = report["lora"]["attn"]["texts"].as_array().unwrap();
    let samples = [
        ("Read the text, please.", "INVOICE 0071, total 19.55"),
        ("How many bars are there? Answer with a number.", "There are 4 bars."),
    ];
    for ((question, answer), want) in samples.iter().zip(texts) {
        let mut conversation = user(question);
        conversation.push(Message::new("assistant", vec![Content::Text(answer.to_string())]));
        assert_eq!(prompter().render(&conversation, false).unwrap(), want.as_str().unwrap());
    }
}

#[test]
fn pictures_are_expanded_row_by_row() {
    let prompter = Prompter::read(&smolvlm(), Placeholders::Tiles(2)).unwrap();
    let around = "<fake_token_around_image>";
    let global = format!("{around}<global-img><image><image>{around}");
    assert_eq!(prompter.expand("a<image>b", &[(0, 0)]).unwrap(), format!("a{global}b"));
    let tile = |row, col| format!("{around}<row_{row}_col_{col}><image><image>");
    let split = format!("{}{}\n{}{}\n\n{global}", tile(1, 1), tile(1, 2), tile(2, 1), tile(2, 2));
    assert_eq!(prompter.expand("<image><image>", &[(2, 2), (0, 0)]).unwrap(), split + &global);
    assert_eq!(prompter.expand("no picture", &[]).unwrap(), "no picture");
    for wrong in [prompter.expand("<image>", &[]), prompter.expand("", &[(0, 0)])] {
        let message = wrong.unwrap_err().to_string();
        assert!(message.contains("<image>"), "{message}");
    }
}

#[test]
fn an_image_token_in_a_text_is_no_picture() {
    let prompter = prompter();
    let image = prompter.token_id("<image>").unwrap();
    let (plain, tricky) = (user("What is a tag?"), user("What is a <image><image> tag?"));
    let encode = |messages: &[Message]| {
        let text = prompter.expand(&prompter.render(messages, true).unwrap(), &[(0, 0)]).unwrap();
        prompter.encode(&text, true).unwrap()
    };
    let count = |ids: &[u32]| ids.iter().filter(|id| **id == image).count();
    assert_eq!(count(&encode(&tricky)), count(&encode(&plain)));
    // The model reads the characters that were written, and nothing marks the place where they were kept apart.
    let decoded = prompter.decode(&encode(&tricky), false).unwrap();
    assert!(decoded.contains("What is a <image><image> tag?"), "{decoded}");
    // Other special tokens in a text are recognised, as transformers does.
    let end = prompter.token_id("<end_of_utterance>").unwrap();
    let ids = encode(&user("a<end_of_utterance>b"));
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 2);
}

#[test]
fn the_vocabulary_is_that_of_the_file() {
    let prompter = prompter();
    assert_eq!(prompter.vocab_size(), 440);
    assert_eq!(prompter.token_id("<image>"), Some(438));
    assert_eq!(prompter.token_id("<end_of_utterance>"), Some(439));
    assert_eq!(prompter.token_id("<nothing>"), None);
    assert_eq!(prompter.token_id("\u{FDD0}"), None);
}

/// The SmolVLM folder with another chat template.
fn with_template(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(smolvlm().join(name), folder.path().join(name)).unwrap();
    }
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn render_with(files: &[(&str, &str)], messages: &[Message]) -> mpa::error::Result<String> {
    Prompter::read(with_template(files).path(), Placeholders::Tiles(4))?.render(messages, true)
}

fn text_only(text: &str) -> Vec<Message> {
    vec![Message::new("user", vec![Content::Text(text.to_string())])]
}

#[test]
fn in_a_text_that_is_no_conversation_a_picture_token_is_text() {
    let prompter = prompter();
    let text = "about <image> and <end_of_utterance>";
    assert!(prompter.encode(text, false).unwrap().contains(&438));
    let ids = prompter.encode_text(text).unwrap();
    assert!(!ids.contains(&438) && ids.contains(&439), "{ids:?}");
    // To a model without pictures it is whatever its tokenizer makes of it.
    let folder = with_template(&[("chat_template.jinja", "{{ messages[0].content }}")]);
    let prompter = Prompter::read(folder.path(), Placeholders::None).unwrap();
    assert_eq!(prompter.encode_text(text).unwrap(), prompter.encode(text, true).unwrap());
    let said = prompter.render(&text_only(text), true).unwrap();
    assert_eq!(prompter.expand(&said, &[]).unwrap(), text);
}

/// As transformers' tokenizers have it: a message is a text, but for templates that take it apart.
#[test]
fn without_pictures_templates_get_texts() {
    let render = |template: &str| {
        let folder = with_template(&[("chat_template.jinja", template)]);
        Prompter::read(folder.path(), Placeholders::None)?.render(&text_only("hi"), true)
    };
    let plain = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}";
    assert_eq!(render(plain).unwrap(), "user: hi");
    for of in ["message.content", "message['content']", "m[ \"content\" ]"] {
        let parts = format!(
            "{{% for {} in messages %}}{{% for part in {of} %}}{{{{ part.type }}}} {{{{ part['text'] }}}}{{% endfor %}}{{% endfor %}}",
            of.split(['.', '[']).next().unwrap()
        );
        assert_eq!(render(&parts).unwrap(), "text hi", "{parts}");
    }
}

/// A template that writes the first token itself does not get it twice; a tokenizer's own template gets none added.
#[test]
fn special_tokens_are_added_as_a_processor_does() {
    let mut tokenizer = json(&smolvlm().join("tokenizer.json"));
    let (first, id) = ("<end_of_utterance>", 439);
    tokenizer["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}},
    });
    let config = format!("{{\"bos_token\": \"{first}\"}}");
    let count = |template: &str, placeholders| {
        let files = [
            ("tokenizer.json", &tokenizer.to_string()[..]),
            ("tokenizer_config.json", &config),
            ("chat_template.jinja", template),
        ];
        let folder = with_template(&files);
        let prompter = Prompter::read(folder.path(), placeholders).unwrap();
        let text = prompter.render(&text_only("hi"), true).unwrap();
        prompter.encode_rendered(&text).unwrap().iter().filter(|&&token| token == id).count()
    };
    let (with, without) = ("{{ bos_token }}hi", "hi");
    assert_eq!([with, without].map(|template| count(template, Placeholders::Tiles(4))), [1, 1]);
    assert_eq!([with, without].map(|template| count(template, Placeholders::None)), [1, 0]);
}

#[test]
fn a_template_is_found_in_each_of_its_places() {
    let (jinja, separate) =
        (("chat_template.jinja", "jinja"), ("chat_template.json", r#"{"chat_template": "json"}"#));
    let inside = (
        "tokenizer_config.json",
        r#"{"chat_template": "inside {{ eos_token }}", "eos_token": {"content": "<e>"}}"#,
    );
    let list = (
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "listed"}]}"#,
    );
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[jinja, separate, inside], "json"),
        (&[jinja, separate, ("processor_config.json", r#"{"chat_template": "processor"}"#)], "processor"),
        (&[jinja, inside, ("processor_config.json", "{}")], "jinja"),
        (&[separate, inside], "json"),
        (&[inside], "inside <e>"),
        (&[list], "listed"),
    ];
    for (files, want) in cases {
        assert_eq!(render_with(files, &text_only("hi")).unwrap(), want);
    }
    // A tokenizer knows no other files than its own two.
    let of_text = |files: &[(&str, &str)]| {
        let folder = with_template(files);
        Prompter::read(folder.path(), Placeholders::None).unwrap().render(&text_only("hi"), true).unwrap()
    };
    assert_eq!(of_text(&[jinja, separate, inside]), "jinja");
    assert_eq!(of_text(&[separate, inside]), "inside <e>");
    assert_eq!(of_text(&[separate]), "json");
    for files in
        [&[][..], &[("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "no"}]}"#)]]
    {
        let error = render_with(files, &text_only("hi")).unwrap_err();
        assert!(error.to_string().contains("chat_template") && error.exit_code() == 2, "{error}");
    }
}

#[test]
fn templates_may_use_what_transformers_gives_them() {
    let template = r#"
{%- set count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {{- message['role'].upper() + ': ' }}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'image') %}
        {%- set count.value = count.value + 1 %}
        {{- 'Picture ' ~ count.value ~ '<image>' }}
    {%- endfor %}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}
        {{- content['text'].strip().split(' ')[-1] }}
    {%- endfor %}
{%- endfor %}
{% if add_generation_prompt %}
    ASSISTANT: {{ messages[-1].content[1] | tojson }} {{ strftime_now('%Y')|length }}{{ bos_token }}
{% endif %}
"#;
    let mut conversation = user(" what <is> \"this\" ");
    conversation.insert(0, Message::new("system", vec![Content::Text("be kind".to_string())]));
    let got = render_with(&[("chat_template.jinja", template)], &conversation).unwrap();
    let want = "USER: Picture 1<image>\"this\"    ASSISTANT: {\"type\": \"text\", \"text\": \" what <is> \\\"this\\\" \"} 4";
    let want = want.to_string() + "<|im_start|>\n";
    assert_eq!(got, want);
}

#[test]
fn a_template_that_fails_is_an_error_that_names_its_file() {
    let cases = [
        ("{% for", "syntax"),
        ("{{ raise_exception('only pairs') }}", "only pairs"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "fuel"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.nothing.at_all }}", "undefined"),
        ("{{ strftime_now('%Q') }}", "%Q"),
        ("<image>", "1 <image> for 0 pictures"),
    ];
    for (template, want) in cases {
        let error = render_with(&[("chat_template.jinja", template)], &text_only("hi")).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("chat_template.jinja") && message.contains(want), "{template}: {message}");
        assert_eq!(error.exit_code(), 2, "{message}");
    }
    let error = render_with(&[("chat_template.jinja", "no picture")], &user("hi")).unwrap_err().to_string();
    assert!(error.contains("0 <image> for 1 pictures"), "{error}");
}

#[test]
fn a_bad_tokenizer_is_an_error_that_names_its_file() {
    // The crate panics on these two: its readers of decoders and of merges trust the file.
    let decoder = r#"{"version": "1.0", "added_tokens": [], "decoder": {"type": "ByteFallback", "a": {]}, "model": {}}"#;
    let merges = r#"{"version": "1.0", "added_tokens": [], "model":
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}"#;
    let cases = [
        ("tokenizer.json", decoder, "not a valid tokenizer"),
        ("tokenizer.json", merges, "not a valid tokenizer: range end index 2"),
        ("tokenizer.json", "{}", "not a valid tokenizer"),
        ("tokenizer.json", "\u{1}", "not a valid tokenizer"),
        ("config.json", r#"{"image_token_id": 70000}"#, "image_token_id"),
        ("config.json", r#"{"image_token_id": "x"}"#, "image_token_id"),
    ];
    for (name, text, want) in cases {
        let folder = with_template(&[("chat_template.jinja", "x"), (name, text)]);
        let error = Prompter::read(folder.path(), Placeholders::Tiles(4)).err().unwrap();
        let message = error.to_string();
        assert!(message.contains(name) && message.contains(want), "{message}");
        assert_eq!(error.exit_code(), 2, "{message}");
    }
    let folder = with_template(&[("chat_template.jinja", "x")]);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = Prompter::read(folder.path(), Placeholders::Tiles(4)).err().unwrap();
    assert!(error.to_string().contains("tokenizer.json") && error.exit_code() == 2, "{error}");
}
