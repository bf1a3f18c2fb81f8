//! What an element of a list says: official layouts, and those of the paper's released files.
use serde_json::{Map, Value};

use super::Benchmark;
use super::conversation;
use super::elements::Element;
use crate::data::records::{self, Record};

/// Pseudo labels in the paper's lists: the parity sets, and what the annotator wrote.
const PSEUDO: [(&str, &str); 2] = [("PA_question", "PA_answer"), ("predicted_question", "predicted_answer")];

/// The elements of the questions that an element has: itself, or in the paper's lists of `qas`, which lie in it, each with what stands beside them.
pub fn questions(element: Element) -> Result<Vec<Element>, String> {
    let Element { mut map, number, line } = element;
    let Some(qas) = map.remove("qas") else { return Ok(vec![Element { map, number, line }]) };
    let list = match qas {
        Value::Array(list) if !list.is_empty() => list,
        other => {
            return Err(format!("key `qas`: expected a list of questions, got {}", records::kind(&other)));
        }
    };
    let one = |question| match question {
        Value::Object(own) => {
            let mut all = map.clone();
            all.extend(own);
            Ok(Element { map: all, number, line })
        }
        other => Err(format!("key `qas`: expected objects, got {} in it", records::kind(&other))),
    };
    list.into_iter().map(one).collect()
}

/// The record of an element: `id` (the text of question_id), `image`, `question`, `answers`, and question_id as it was. What the element does not
/// have stays empty; a wrong type is an error. `split`: of COCO's pictures, such as val2014.
pub fn record(
    benchmark: Benchmark,
    mut map: Map<String, Value>,
    number: usize,
    line: usize,
    split: Option<&str>,
) -> Result<Record, String> {
    let given = ["question_id", "id"].into_iter().find_map(|key| map.get(key).filter(|id| !id.is_null()));
    let question_id = match given {
        Some(id) => id.clone(),
        // ChartQA's own files have none; the others are useless without.
        None if benchmark == Benchmark::Chartqa || conversation::is(&map) => Value::from(number),
        None => return Err(missing("question_id", &map)),
    };
    let id = records::take_text(
        &mut Map::from_iter([("question_id".to_string(), question_id.clone())]),
        "question_id",
    )?
    .ok_or_else(|| missing("question_id", &map))?;
    let mut record = Record { id, line, ..Record::default() };
    if conversation::is(&map) {
        conversation::fill(&mut record, &map)?;
    } else if let Some((question, answer)) = PSEUDO.iter().find(|(question, _)| map.contains_key(*question)) {
        record.question = records::take_text(&mut map, question)?;
        record.image = records::take_text(&mut map, "image_path")?;
        record.answers = answers(&mut map, answer)?;
    } else {
        official(benchmark, &mut record, &mut map, split)?;
    }
    record.extra.insert("question_id".to_string(), question_id);
    Ok(record)
}

fn official(
    benchmark: Benchmark,
    record: &mut Record,
    map: &mut Map<String, Value>,
    split: Option<&str>,
) -> Result<(), String> {
    let (question, wanted) = match benchmark {
        Benchmark::Chartqa => ("query", "label"),
        _ => ("question", "answers"),
    };
    record.question = records::take_text(map, question)?;
    record.answers = answers(map, wanted)?;
    let image = match benchmark {
        Benchmark::Chartqa => "imgname",
        Benchmark::Stvqa => "file_path",
        Benchmark::Textvqa | Benchmark::Okvqa => "image_id",
    };
    let image = records::take_text(map, image)?.filter(|image| !image.is_empty());
    record.image = match benchmark {
        Benchmark::Chartqa | Benchmark::Stvqa => image,
        Benchmark::Textvqa => image.map(|id| format!("{id}.jpg")),
        Benchmark::Okvqa => image.zip(split).map(|(id, split)| format!("COCO_{split}_{id:0>12}.jpg")),
    };
    Ok(())
}

/// A text, a list of texts, or a list of objects with `answer` (VQA; their `raw_answer` is not what counts).
fn answers(map: &mut Map<String, Value>, key: &str) -> Result<Option<Vec<String>>, String> {
    let list = match map.remove(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let text = |value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Object(mut one) => records::take_text(&mut one, "answer")?
            .ok_or_else(|| format!("key `{key}`: {}", missing("answer", &one))),
        other => Err(format!("key `{key}`: expected texts, got {} in it", records::kind(&other))),
    };
    list.into_iter().map(text).collect::<Result<_, _>>().map(Some)
}

pub fn missing(key: &str, map: &Map<String, Value>) -> String {
    let keys: Vec<&str> = map.keys().map(String::as_str).take(20).collect();
    format!(
        "missing key `{key}`; it has {}",
        if keys.is_empty() { "none".to_string() } else { keys.join(", ") }
    )
}
