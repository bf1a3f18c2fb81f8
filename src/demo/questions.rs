//! What can be asked of a scene, and the one right answer.
use rand_chacha::ChaCha8Rng;

use crate::demo::scene::{Bar, Color, Content, Kind, Scene, Shape};
use crate::random;

/// What a question asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skill {
    /// Height of the bar of a colour.
    Height,
    Highest,
    Lowest,
    /// Height of the highest bar.
    Top,
    /// Height of the lowest bar.
    Bottom,
    First,
    Last,
    CountBars,
    Word,
    SignColor,
    /// Shape of a colour.
    ShapeKind,
    CountShapes,
}

impl Skill {
    /// Skills that a kind of picture calls for.
    pub fn of(kind: Kind) -> &'static [Skill] {
        match kind {
            Kind::Chart => &[
                Skill::Height,
                Skill::Highest,
                Skill::Lowest,
                Skill::Top,
                Skill::Bottom,
                Skill::First,
                Skill::Last,
                Skill::CountBars,
            ],
            Kind::Sign => &[Skill::Word, Skill::SignColor],
            Kind::Shapes => &[Skill::ShapeKind, Skill::CountShapes],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub skill: Skill,
    pub text: String,
    pub answer: String,
}

/// Every question that can be asked of `scene`.
pub fn questions(scene: &Scene) -> Vec<Question> {
    match &scene.content {
        Content::Chart(bars) => chart_questions(&bars.iter().flatten().copied().collect::<Vec<_>>()),
        Content::Sign { word, color, .. } => vec![
            ask(Skill::Word, "what does the sign say?", *word),
            ask(Skill::SignColor, "what color is the sign?", color.name()),
        ],
        Content::Shapes(shapes) => shape_questions(&shapes.iter().flatten().copied().collect::<Vec<_>>()),
    }
}

/// The right answer to `question`, or none if it cannot be asked of `scene`.
/// Case, surrounding blanks and a missing question mark do not matter.
pub fn answer(scene: &Scene, question: &str) -> Option<String> {
    let plain = |text: &str| text.trim().trim_end_matches('?').trim_end().to_lowercase();
    let wanted = plain(question);
    questions(scene).into_iter().find(|q| plain(&q.text) == wanted).map(|q| q.answer)
}

/// A question on one of `skills`, all of these that `scene` allows being equally likely (one that is named twice, twice as likely); none
/// if it allows none.
pub fn random_question(scene: &Scene, skills: &[Skill], rng: &mut ChaCha8Rng) -> Option<Question> {
    let all = questions(scene);
    let possible: Vec<Skill> = skills.iter().copied().filter(|s| all.iter().any(|q| q.skill == *s)).collect();
    let skill = possible.get(random::below(rng, possible.len()))?;
    let of_skill: Vec<&Question> = all.iter().filter(|q| q.skill == *skill).collect();
    of_skill.get(random::below(rng, of_skill.len())).map(|q| (*q).clone())
}

fn ask(skill: Skill, text: impl Into<String>, answer: impl Into<String>) -> Question {
    Question { skill, text: text.into(), answer: answer.into() }
}

fn chart_questions(bars: &[Bar]) -> Vec<Question> {
    let mut all = Vec::new();
    for bar in bars {
        let (color, value) = (bar.color.name(), bar.value.to_string());
        all.push(ask(Skill::Height, format!("how high is the {color} bar?"), value));
    }
    let by_value = |bar: &&Bar| bar.value;
    if let (Some(high), Some(low)) = (bars.iter().max_by_key(by_value), bars.iter().min_by_key(by_value)) {
        all.push(ask(Skill::Highest, "which bar is the highest?", high.color.name()));
        all.push(ask(Skill::Lowest, "which bar is the lowest?", low.color.name()));
        all.push(ask(Skill::Top, "how high is the highest bar?", high.value.to_string()));
        all.push(ask(Skill::Bottom, "how high is the lowest bar?", low.value.to_string()));
    }
    if let (Some(first), Some(last)) = (bars.first(), bars.last()) {
        all.push(ask(Skill::First, "which bar is the first?", first.color.name()));
        all.push(ask(Skill::Last, "which bar is the last?", last.color.name()));
    }
    all.push(ask(Skill::CountBars, "how many bars are there?", bars.len().to_string()));
    all
}

fn shape_questions(shapes: &[(Shape, Color)]) -> Vec<Question> {
    let mut all = Vec::new();
    for (shape, color) in shapes {
        let (shape, color) = (shape.name(), color.name());
        all.push(ask(Skill::ShapeKind, format!("what shape is {color}?"), shape));
    }
    all.push(ask(Skill::CountShapes, "how many shapes are there?", shapes.len().to_string()));
    all
}

/// The scene read aloud, from left to right: a first exercise for the models, never asked in a run.
pub fn reading(scene: &Scene) -> String {
    let words: Vec<String> = match &scene.content {
        Content::Chart(bars) => {
            bars.iter().flatten().map(|b| format!("{} {}", b.color.name(), b.value)).collect()
        }
        Content::Sign { word, color, .. } => vec![format!("{} {word}", color.name())],
        Content::Shapes(shapes) => {
            shapes.iter().flatten().map(|(s, c)| format!("{} {}", c.name(), s.name())).collect()
        }
    };
    words.join(" ")
}
