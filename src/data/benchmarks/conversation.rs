//! Conversations, as Qwen's training files have them: a user's turn with picture and question, an assistant's with the answer. Turns are
//! `conversations` of {from, value} or `messages` of {role, content}; the picture is in <img> tags, in `image` or in `images`.
use serde_json::{Map, Value};

use crate::data::records::Record;

/// What the paper's code puts behind a question; a model's prompt has it anyway.
const ASKED: &str = "Answer the following question in a single word or phrase.";

fn turns(map: &Map<String, Value>) -> Option<&Vec<Value>> {
    ["conversations", "messages"].iter().find_map(|key| map.get(*key)).and_then(Value::as_array)
}

pub fn is(map: &Map<String, Value>) -> bool {
    turns(map).is_some()
}

/// Takes the first question and the first answer.
pub fn fill(record: &mut Record, map: &Map<String, Value>) -> Result<(), String> {
    for turn in turns(map).into_iter().flatten() {
        let get = |keys: [&str; 2]| keys.iter().find_map(|key| turn.get(*key));
        let who = get(["from", "role"]).and_then(Value::as_str).unwrap_or("");
        let content = get(["value", "content"]).ok_or("a turn has no `value` (nor `content`)")?;
        let (text, image) = said(content);
        match who {
            "user" | "human" if record.question.is_none() => {
                let (text, tagged) = picture(&text);
                record.image = tagged.or(image);
                record.question = Some(text);
            }
            "assistant" | "gpt" if record.answers.is_none() => {
                record.answers = Some(vec![text.trim().to_string()])
            }
            "user" | "human" | "assistant" | "gpt" | "system" => {}
            other => return Err(format!("a turn is from {other:?}, expected user or assistant")),
        }
    }
    if record.image.is_none() {
        let first =
            |value: &Value| value.as_array().map_or(Some(value.clone()), |list| list.first().cloned());
        let image = ["image", "images", "image_path"].iter().find_map(|key| map.get(*key)).and_then(first);
        record.image = image.and_then(|value| value.as_str().map(str::to_string));
    }
    Ok(())
}

/// Text and picture of a turn's content: a text, or a list of parts.
fn said(content: &Value) -> (String, Option<String>) {
    let Some(parts) = content.as_array() else {
        return (content.as_str().unwrap_or("").to_string(), None);
    };
    let all = |key: &'static str| parts.iter().filter_map(move |part| part.get(key).and_then(Value::as_str));
    (all("text").collect::<Vec<_>>().join("\n"), all("image").next().map(str::to_string))
}

/// The question without picture tags and without the request for a short answer, and the path in the tags.
fn picture(text: &str) -> (String, Option<String>) {
    let (text, image) = match text
        .split_once("<img>")
        .and_then(|(before, rest)| Some((before, rest.split_once("</img>")?)))
    {
        Some((_, (path, after))) => (after, Some(path.to_string())),
        None => (text, None),
    };
    let text = text.replace("<image>", "");
    let text = text.trim();
    let text = text.strip_suffix(ASKED).unwrap_or(text).trim();
    (text.to_string(), image)
}
