//! What the demo has to say: the run's summary, and how good the pseudo-labels were, which only the demo can know.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::data::metrics::correct;
use crate::data::records::{self, Record};
use crate::demo::inputs::unlabelled;
use crate::demo::questions;
use crate::error::{Error, Result};
use crate::mpa::progress::span;
use crate::mpa::run::Outcome;

/// Accuracies and shares are fractions.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub teacher: f64,
    pub student: f64,
    pub leveled: f64,
    pub parity_only: f64,
    pub all_pseudo: f64,
    pub random_subset: f64,
    /// How much of the way from student to teacher the levelled student has gone.
    pub gap_closed: f64,
    /// Unlabelled pictures.
    pub pictures: usize,
    /// Pairs of question and answer that the teacher wrote about them, without those that did not parse.
    pub pseudo_labels: usize,
    /// Share of these whose question fits the picture and whose answer is right.
    pub pseudo_accuracy: f64,
    /// The same after the teacher's own check.
    pub consistent_accuracy: f64,
    /// Parity set.
    pub kept: usize,
    pub kept_accuracy: f64,
    pub rehearsal: usize,
    /// Optimizer steps of each arm.
    pub steps: usize,
    /// By stage, this time.
    pub seconds: BTreeMap<String, f64>,
    /// Where everything lies; none if it was temporary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

impl Report {
    /// Of the finished run in `folder`.
    pub fn new(folder: &Path, seed: u64, outcome: &Outcome) -> Result<Report> {
        let summary = &outcome.summary;
        let score = |who: &str| {
            let scores = summary.scores.get(who).map(|scores| scores.accuracy);
            scores.ok_or_else(|| Error::Failure(format!("demo: the run has no score of {who}")))
        };
        let (teacher, student, leveled) = (score("teacher")?, score("student")?, score("leveled")?);
        let set = |name: &str| -> Result<Vec<Record>> {
            let all = records::read(&folder.join(name))?;
            Ok(all.into_iter().filter(|record| record.rejected.is_none()).collect())
        };
        let (pseudo, parity, rehearsal) =
            (set("annotate.jsonl")?, set("parity.jsonl")?, set("rehearsal.jsonl")?);
        let pictures =
            pseudo.iter().filter_map(|r| r.image.as_deref()).collect::<std::collections::BTreeSet<_>>().len();
        Ok(Report {
            seed,
            teacher,
            student,
            leveled,
            parity_only: score("parity_only")?,
            all_pseudo: score("all_pseudo")?,
            random_subset: score("random_subset")?,
            gap_closed: (leveled - student) / (teacher - student),
            pictures,
            pseudo_labels: pseudo.len(),
            pseudo_accuracy: share_right(pseudo.iter(), seed),
            consistent_accuracy: share_right(parity.iter().chain(&rehearsal), seed),
            kept: parity.len(),
            kept_accuracy: share_right(parity.iter(), seed),
            rehearsal: summary.samples.get("leveled").map_or(0, |all| all.saturating_sub(parity.len())),
            steps: summary.steps,
            seconds: outcome.seconds.clone(),
            folder: None,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} unlabelled pictures; the teacher wrote {} questions and answers about them, {:.0} % of them right\n\
             (which only the demo knows); {:.0} % after the teacher's own check; {} of these the student got wrong:\n\
             the parity set, {:.0} % right. Levelling took {} steps for every arm. Accuracy on held-out pictures:\n\n",
            self.pictures,
            self.pseudo_labels,
            100.0 * self.pseudo_accuracy,
            100.0 * self.consistent_accuracy,
            self.kept,
            100.0 * self.kept_accuracy,
            self.steps
        );
        let rows = [
            ("teacher", self.teacher, "the large model"),
            ("student", self.student, "the small one, before"),
            ("leveled", self.leveled, "the parity set and half as many rehearsal samples"),
            ("parity_only", self.parity_only, "the parity set alone, as in the paper"),
            ("all_pseudo", self.all_pseudo, "all pseudo-labels, no selection"),
            ("random_subset", self.random_subset, "as many at random as the parity set has"),
        ];
        for (name, accuracy, what) in rows {
            let gap = (accuracy - self.student) / (self.teacher - self.student);
            let gap = match name {
                "teacher" | "student" => " ".repeat(17),
                _ => format!("{:4.0} % of the gap", 100.0 * gap),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name:<14} {accuracy:.3}  {gap}  {what}");
        }
        let _ = writeln!(text, "\n{}", self.verdict());
        let total = self.seconds.get("total").copied().unwrap_or_default();
        let _ = match &self.folder {
            Some(folder) => write!(text, "{folder} in {}", span(total)),
            None => write!(text, "Took {}; --out DIR keeps the run and its report.", span(total)),
        };
        text
    }

    /// What selection brought, said as it is.
    fn verdict(&self) -> String {
        let points = |other: f64| 100.0 * (self.leveled - other);
        let (subset, all) = (points(self.random_subset), points(self.all_pseudo));
        if subset > 0.0 && all > 0.0 {
            format!(
                "Selection brought {subset:.1} points over a random subset and {all:.1} over all pseudo-labels in the same number of steps."
            )
        } else {
            format!(
                "Selection brought nothing here: {subset:+.1} points against a random subset, {all:+.1} against all pseudo-labels."
            )
        }
    }
}

/// Share of pseudo-labels whose question fits their picture and whose answer is right; 0 of none.
fn share_right<'a>(labels: impl Iterator<Item = &'a Record>, seed: u64) -> f64 {
    let (mut right, mut all) = (0_usize, 0_usize);
    for label in labels {
        all += 1;
        right += usize::from(is_right(label, seed).unwrap_or(false));
    }
    if all == 0 { 0.0 } else { right as f64 / all as f64 }
}

fn is_right(label: &Record, seed: u64) -> Option<bool> {
    let number: usize = Path::new(label.image.as_deref()?).file_stem()?.to_str()?.parse().ok()?;
    let truth = questions::answer(&unlabelled(seed, number), label.question.as_deref()?)?;
    Some(correct(label.answer.as_deref()?, &[&truth]))
}
