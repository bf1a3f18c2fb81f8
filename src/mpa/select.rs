//! The Parity Identifier: keeps the samples that the teacher answers as annotated and the student does not, or finds much less likely.
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::files::{self, Rebase};
use crate::data::metrics::Norm;
use crate::data::records::Record;
use crate::data::released;
use crate::error::{Error, Result};
use crate::mpa::predict::LOGPROB;

/// When a sample is kept. Predictions and answers are normalised (`Norm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The answer is found inside the prediction (the paper's released code).
    Contains,
    /// They are equal.
    Exact,
    /// The answer's mean log-probability under the teacher is above that under the student by more than a margin. What is right, for the counts and
    /// for rehearsal, is as with `contains`.
    Margin,
}

/// A rule, and the margin of the one that has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Criterion {
    pub rule: Rule,
    pub margin: f64,
}

impl From<Rule> for Criterion {
    fn from(rule: Rule) -> Self {
        Criterion { rule, margin: 0.0 }
    }
}

impl Rule {
    pub fn agrees(self, norm: &Norm, prediction: &str, answer: &str) -> bool {
        match self {
            Rule::Contains | Rule::Margin => norm.contains(prediction, answer),
            Rule::Exact => norm.equal(prediction, answer),
        }
    }
}

/// What is decided about a sample.
enum Verdict {
    Keep,
    /// The student has it right as well.
    Rehearse,
    Reject(&'static str),
}

impl Criterion {
    fn decide(self, right: bool, knows: bool, lead: f64) -> Verdict {
        match (self.rule, right, knows) {
            (Rule::Margin, ..) if lead > self.margin => Verdict::Keep,
            (_, true, true) => Verdict::Rehearse,
            (Rule::Margin, ..) => Verdict::Reject("below_margin"),
            (_, true, false) => Verdict::Keep,
            (_, false, _) => Verdict::Reject("teacher_inconsistent"),
        }
    }
}

/// Where the sets go; those that are `None` are only counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outputs<'a> {
    /// Teacher right, student wrong.
    pub parity: Option<&'a Path>,
    /// Teacher right, student right.
    pub rehearsal: Option<&'a Path>,
    /// The rest, with `rejected`.
    pub rejected: Option<&'a Path>,
}

/// `kept` and the counts of `rejected` add up to `records`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub records: usize,
    pub teacher_consistent: usize,
    pub student_wrong: usize,
    pub kept: usize,
    pub rehearsal: usize,
    pub rejected: BTreeMap<String, usize>,
}

/// Joins two prediction files by id, decides, and writes the sets in the teacher's order. Their records have the teacher's keys without
/// `prediction`, and both predictions as `teacher` and `student` (and, where they are known, `teacher_logprob` and `student_logprob`).
pub fn run(
    teacher: &Path,
    student: &Path,
    criterion: impl Into<Criterion>,
    outputs: Outputs<'_>,
) -> Result<Counts> {
    let criterion = criterion.into();
    let rule = criterion.rule;
    let norm = Norm::new()?;
    let teachers = released::read(teacher)?;
    let mut students: HashMap<String, Record> =
        released::read(student)?.into_iter().map(|r| (r.id.clone(), r)).collect();
    let mut counts = Counts { records: teachers.len(), ..Counts::default() };
    let mut parity = Set::new(teacher, outputs.parity)?;
    let mut rehearsal = Set::new(teacher, outputs.rehearsal)?;
    let mut rejected = Set::new(teacher, outputs.rejected)?;
    let (mut known, mut unknown) = (false, None);
    for record in teachers {
        let partner =
            students.remove(&record.id).ok_or_else(|| unpaired(teacher, &record, student, "student"))?;
        same(teacher, &record, student, &partner)?;
        if let Some(reason) = record.rejected.as_ref().or(partner.rejected.as_ref()) {
            *counts.rejected.entry(reason.clone()).or_default() += 1;
            rejected.add(Record { rejected: Some(reason.clone()), ..record })?;
            continue;
        }
        let answer = record.need(teacher, "answer")?;
        let right = rule.agrees(&norm, record.need(teacher, "prediction")?, answer);
        let knows = rule.agrees(&norm, partner.need(student, "prediction")?, answer);
        counts.teacher_consistent += usize::from(right);
        counts.student_wrong += usize::from(!knows);
        let verdict = match rule {
            Rule::Contains | Rule::Exact => criterion.decide(right, knows, 0.0),
            // A label that is too long to be a draft has no log-probability.
            Rule::Margin => match (logprob(teacher, &record), logprob(student, &partner)) {
                (Ok(theirs), Ok(ours)) => {
                    known = true;
                    criterion.decide(right, knows, theirs - ours)
                }
                (Err(error), _) | (_, Err(error)) => {
                    unknown = unknown.or(Some(error));
                    Verdict::Reject("no_logprob")
                }
            },
        };
        let record = merged(record, partner);
        match verdict {
            Verdict::Keep => parity.add(record)?,
            Verdict::Rehearse => {
                *counts.rejected.entry("student_right".to_string()).or_default() += 1;
                rehearsal.add(record)?;
            }
            Verdict::Reject(reason) => {
                let reason = reason.to_string();
                *counts.rejected.entry(reason.clone()).or_default() += 1;
                rejected.add(Record { rejected: Some(reason), ..record })?;
            }
        }
    }
    if let Some(error) = unknown.filter(|_| !known) {
        return Err(error);
    }
    if let Some(extra) = students.values().min_by_key(|record| record.line) {
        return Err(unpaired(student, extra, teacher, "teacher"));
    }
    (counts.kept, counts.rehearsal) = (parity.records, rehearsal.records);
    for set in [parity, rehearsal, rejected] {
        set.write()?;
    }
    Ok(counts)
}

fn unpaired(file: &Path, record: &Record, other: &Path, whose: &str) -> Error {
    let what = format!("id {:?} is not in the {whose}'s file {}", record.id, other.display());
    Error::line(file, record.line, what)
}

/// The two files are about the same samples.
fn same(teacher: &Path, record: &Record, student: &Path, partner: &Record) -> Result<()> {
    let pairs =
        [("question", &record.question, &partner.question), ("answer", &record.answer, &partner.answer)];
    for (key, ours, theirs) in pairs {
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours != theirs
        {
            let what = format!(
                "id {:?}: `{key}` is {ours:?}, but {theirs:?} in {}:{}",
                record.id,
                student.display(),
                partner.line
            );
            return Err(Error::line(teacher, record.line, what));
        }
    }
    Ok(())
}

fn merged(mut record: Record, partner: Record) -> Record {
    let pair = [("teacher", record.prediction.take()), ("student", partner.prediction)];
    record.extra.extend(pair.into_iter().filter_map(|(key, text)| Some((key.to_string(), text?.into()))));
    let ours = record.extra.remove(LOGPROB);
    let pair = [("teacher_logprob", ours), ("student_logprob", partner.extra.get(LOGPROB).cloned())];
    record.extra.extend(pair.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
    record
}

/// The log-probability that `predict` has recorded.
fn logprob(file: &Path, record: &Record) -> Result<f64> {
    let value = record.extra.get(LOGPROB).and_then(serde_json::Value::as_f64);
    value.filter(|v| v.is_finite()).ok_or_else(|| {
        let what = format!(
            "record {:?}: expected a number `{LOGPROB}`, which mpa predict writes for records with `answer`",
            record.id
        );
        Error::line(file, record.line, what)
    })
}

/// One output file in the making.
struct Set<'a> {
    out: Option<(&'a Path, Rebase)>,
    records: usize,
    bytes: Vec<u8>,
}

impl<'a> Set<'a> {
    fn new(source: &Path, out: Option<&'a Path>) -> Result<Set<'a>> {
        let out = match out {
            None => None,
            Some(path) => {
                files::make_parent(path)?;
                Some((path, Rebase::new(source, path)?))
            }
        };
        Ok(Set { out, records: 0, bytes: Vec::new() })
    }

    fn add(&mut self, mut record: Record) -> Result<()> {
        self.records += 1;
        if let Some((_, rebase)) = &self.out {
            record.image = record.image.map(|image| rebase.path(&image));
            self.bytes.extend(record.to_line()?);
        }
        Ok(())
    }

    fn write(self) -> Result<()> {
        match &self.out {
            Some((path, _)) => files::write(path, &self.bytes),
            None => Ok(()),
        }
    }
}
