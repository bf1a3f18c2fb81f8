//! What is wrong with a download: read once, before hours are spent on it.
use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Serialize;

use super::{Benchmark, Files};
use crate::data::images;
use crate::error::Result;

/// Examples kept of each fault.
const SHOWN: usize = 10;

/// A fault: how often, and the first examples.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fault {
    pub count: usize,
    pub first: Vec<String>,
}

impl Fault {
    fn add(&mut self, example: impl Into<String>) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(example.into());
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub questions: usize,
    /// Different ones that are named.
    pub pictures: usize,
    pub answers: usize,
    /// No question has an answer, as in test splits.
    pub unanswered: bool,
    pub duplicate_ids: Fault,
    pub without_question: Fault,
    pub without_answers: Fault,
    pub without_picture: Fault,
    /// Not looked for without a folder of pictures.
    pub missing_pictures: Fault,
    /// What is there is no picture, by the beginning of its file.
    pub unreadable_pictures: Fault,
}

impl Report {
    /// Each fault, with what it is called.
    pub fn faults(&self) -> [(&'static str, &Fault); 6] {
        [
            ("question ids that are there twice", &self.duplicate_ids),
            ("without a question", &self.without_question),
            ("without answers", &self.without_answers),
            ("that name no picture", &self.without_picture),
            ("pictures missing", &self.missing_pictures),
            ("pictures unreadable", &self.unreadable_pictures),
        ]
    }

    pub fn sound(&self) -> bool {
        self.questions > 0 && self.faults().iter().all(|(_, fault)| fault.count == 0)
    }
}

/// Reads all records; looks for their pictures if `images` is there. Holds ids and names of pictures.
pub fn run(files: &Files<'_>, images: Option<&Path>) -> Result<Report> {
    let mut report = Report::default();
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut pictures: HashSet<String> = HashSet::new();
    let (mut samples, mut listed) = (files.open()?, false);
    for record in samples.by_ref() {
        let record = record?;
        report.questions += 1;
        let lines = ids.get(&record.id).copied();
        if let Some(first) = lines {
            report.duplicate_ids.add(format!("{} (lines {first} and {})", record.id, record.line));
        } else {
            ids.insert(record.id.clone(), record.line);
        }
        // With OK-VQA's annotations alone there is no question to be had.
        let empty = record.question.as_ref().is_none_or(|question| question.trim().is_empty());
        if empty && (files.questions.is_some() || files.benchmark != Benchmark::Okvqa) {
            report.without_question.add(&record.id);
        }
        let answers = record.answers.unwrap_or_default();
        listed |= !answers.is_empty();
        match answers.iter().all(|answer| answer.trim().is_empty()) {
            true => report.without_answers.add(&record.id),
            false => report.answers += answers.len(),
        }
        let Some(image) = record.image else {
            report.without_picture.add(match files.benchmark {
                Benchmark::Okvqa => {
                    format!("{} (no image_id, or neither val nor train to be its split)", record.id)
                }
                _ => record.id,
            });
            continue;
        };
        if pictures.contains(&image) {
            continue;
        }
        if let Some(folder) = images {
            let path = files.locate(folder, &image);
            if !path.exists() {
                report.missing_pictures.add(&image);
            } else if let Err(error) = images::size(&path) {
                report.unreadable_pictures.add(error.to_string());
            }
        }
        pictures.insert(image);
    }
    for annotation in samples.left() {
        let annotation = annotation?;
        match ids.contains_key(&annotation.id) {
            true => report
                .duplicate_ids
                .add(format!("{} (again on line {} of the annotations)", annotation.id, annotation.line)),
            false => report.without_question.add(annotation.id),
        }
    }
    report.pictures = pictures.len();
    // A test split: only the benchmark's server has its answers. Those that are there but empty are another matter.
    if report.without_answers.count == report.questions && !listed {
        report.without_answers = Fault::default();
        report.unanswered = report.questions > 0;
    }
    Ok(report)
}
