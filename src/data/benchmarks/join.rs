//! Questions and annotations of OK-VQA, joined by question_id.
use std::collections::HashMap;

use super::List;
use crate::data::records::Record;
use crate::error::Result;

/// In the order of the questions. Annotations that are read before their question wait: none do where both files have one order, as the
/// official ones have; at worst all answers are held.
pub struct Join {
    questions: List,
    annotations: List,
    waiting: HashMap<String, Vec<Record>>,
    ended: bool,
}

impl Join {
    pub fn new(questions: List, annotations: List) -> Join {
        Join { questions, annotations, waiting: HashMap::new(), ended: false }
    }

    fn read(&mut self) -> Result<Option<Record>> {
        let Some(question) = self.questions.next() else {
            return Ok(None);
        };
        let mut question = question?;
        if let Some(annotation) = self.annotation(&question.id)? {
            question.answers = annotation.answers;
            question.image = question.image.or(annotation.image);
        }
        Ok(Some(question))
    }

    /// What is left when the questions are over: annotations of none of them, and further ones of one that had its own.
    pub fn left(&mut self) -> impl Iterator<Item = Result<Record>> {
        let mut waiting: Vec<Record> = self.waiting.drain().flat_map(|(_, list)| list).collect();
        waiting.sort_by_key(|annotation| annotation.line);
        waiting.into_iter().map(Ok).chain(self.annotations.by_ref())
    }

    fn annotation(&mut self, id: &str) -> Result<Option<Record>> {
        if let Some(annotation) = self.taken(id) {
            return Ok(Some(annotation));
        }
        for annotation in self.annotations.by_ref() {
            let annotation = annotation?;
            if annotation.id == id {
                return Ok(Some(annotation));
            }
            self.waiting.entry(annotation.id.clone()).or_default().push(annotation);
        }
        Ok(None)
    }

    fn taken(&mut self, id: &str) -> Option<Record> {
        let list = self.waiting.get_mut(id)?;
        let first = (!list.is_empty()).then(|| list.remove(0));
        if list.is_empty() {
            self.waiting.remove(id);
        }
        first
    }
}

impl Iterator for Join {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
