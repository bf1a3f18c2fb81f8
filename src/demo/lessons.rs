//! What the recipe teaches: exercises on drawn pictures, and what the student is kept from learning.
use rand_chacha::ChaCha8Rng;

use crate::demo::questions::{Skill, random_question, reading};
use crate::demo::scene::{Kind, Scene, Style};
use crate::demo::vocabulary::{ANNOTATE, READ};
use crate::random;

/// Whether the student is taught `skill`. What it lacks is near to what it knows: it can tell the highest bar but not the lowest.
pub fn student_knows(skill: Skill) -> bool {
    !matches!(skill, Skill::Lowest | Skill::Bottom | Skill::Last | Skill::Word | Skill::ShapeKind)
}

/// How much the teacher likes to ask for `skill` when it annotates: mostly for what meets the eye first.
pub fn liking(skill: Skill) -> usize {
    match skill {
        Skill::Height | Skill::Highest | Skill::Top | Skill::First | Skill::CountBars => 4,
        Skill::SignColor | Skill::CountShapes => 4,
        Skill::Lowest | Skill::Bottom | Skill::Last | Skill::Word | Skill::ShapeKind => 1,
    }
}

/// What is practised in a stage.
#[derive(Clone, Copy, Debug)]
pub struct Lesson {
    /// Relative numbers of charts, signs and shapes.
    pub kinds: [usize; 3],
    pub styles: &'static [Style],
    /// Pictures of one step, and exercises on each of them.
    pub pictures: usize,
    pub exercises: usize,
    /// Fractions of all exercises that read the picture aloud, or write a question and its answer; the others are questions.
    pub read: f64,
    pub annotate: f64,
    pub asked: fn(Skill) -> bool,
}

/// A prompt and what should come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exercise {
    pub prompt: String,
    pub answer: String,
    /// Of a question; none for reading and annotating.
    pub skill: Option<Skill>,
}

impl Lesson {
    /// A picture of this lesson and the exercises on it.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> (Scene, Vec<Exercise>) {
        let style = self.styles.get(random::below(rng, self.styles.len())).copied().unwrap_or(Style::Light);
        let scene = Scene::random_of(self.kind(rng), style, rng);
        let exercises = (0..self.exercises).filter_map(|_| self.exercise(&scene, rng)).collect();
        (scene, exercises)
    }

    fn kind(&self, rng: &mut ChaCha8Rng) -> Kind {
        let [charts, signs, shapes] = self.kinds;
        match random::below(rng, charts + signs + shapes) {
            n if n < charts => Kind::Chart,
            n if n < charts + signs => Kind::Sign,
            _ => Kind::Shapes,
        }
    }

    fn exercise(&self, scene: &Scene, rng: &mut ChaCha8Rng) -> Option<Exercise> {
        let choice = random::uniform(rng);
        if choice < self.read {
            return Some(Exercise { prompt: READ.into(), answer: reading(scene), skill: None });
        }
        let annotate = choice < self.read + self.annotate;
        let times = |skill: Skill| match annotate {
            _ if !(self.asked)(skill) => 0,
            true => liking(skill),
            false => 1,
        };
        let skills: Vec<Skill> = Skill::of(scene.kind())
            .iter()
            .flat_map(|&skill| std::iter::repeat_n(skill, times(skill)))
            .collect();
        let question = random_question(scene, &skills, rng)?;
        Some(if annotate {
            let answer = format!("Question: {} Answer: {}", question.text, question.answer);
            Exercise { prompt: ANNOTATE.into(), answer, skill: None }
        } else {
            Exercise { prompt: question.text, answer: question.answer, skill: Some(question.skill) }
        })
    }
}
