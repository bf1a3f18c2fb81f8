//! What a picture of the demo shows, exactly. Everything is laid on the 16-pixel grid of the models' picture tokens.
use rand_chacha::ChaCha8Rng;

use crate::random;

/// On paper or on a blackboard: the same things drawn in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Style {
    Light,
    Dark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Color {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Cyan,
}

impl Color {
    pub const ALL: [Color; 6] =
        [Color::Red, Color::Green, Color::Blue, Color::Yellow, Color::Purple, Color::Cyan];

    pub fn name(self) -> &'static str {
        match self {
            Color::Red => "red",
            Color::Green => "green",
            Color::Blue => "blue",
            Color::Yellow => "yellow",
            Color::Purple => "purple",
            Color::Cyan => "cyan",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Cross,
}

impl Shape {
    pub const ALL: [Shape; 4] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Cross];

    pub fn name(self) -> &'static str {
        match self {
            Shape::Circle => "circle",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Cross => "cross",
        }
    }
}

/// Words that a sign can carry; four letters each, one for each column of the grid.
pub const WORDS: [&str; 8] = ["open", "stop", "exit", "taxi", "cafe", "slow", "park", "sale"];

/// Bars and shapes stand in this many places.
pub const SLOTS: usize = 4;
/// The highest bar possible.
pub const MAX_VALUE: u8 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bar {
    pub color: Color,
    /// 1..=MAX_VALUE; no two bars of a chart are equal.
    pub value: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Two to four bars, from left to right.
    Chart([Option<Bar>; SLOTS]),
    /// A word on a coloured plate; `row` (1 or 2) of the grid holds it.
    Sign { word: &'static str, color: Color, row: u8 },
    /// Two to four different shapes of different colours, one in each quarter.
    Shapes([Option<(Shape, Color)>; SLOTS]),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    pub style: Style,
    pub content: Content,
}

/// What kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Chart,
    Sign,
    Shapes,
}

/// Pictures for different purposes never come from the same stream of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The recipe that trains the two models.
    Recipe,
    /// The unlabelled pictures of a run.
    Unlabelled,
    /// Held-out pictures with true answers.
    HeldOut,
}

/// The generator of picture number `index`: a function of these three and nothing else.
pub fn generator(purpose: Purpose, seed: u64, index: u64) -> ChaCha8Rng {
    random::stream(seed, &[random::hash("demo"), purpose as u64, index])
}

impl Scene {
    /// A picture of the demo: mostly charts, some signs and shapes, half of them dark.
    pub fn random(rng: &mut ChaCha8Rng) -> Scene {
        let kind = match random::below(rng, 10) {
            0..6 => Kind::Chart,
            6..8 => Kind::Sign,
            _ => Kind::Shapes,
        };
        let style = if random::below(rng, 2) == 0 { Style::Light } else { Style::Dark };
        Scene::random_of(kind, style, rng)
    }

    pub fn random_of(kind: Kind, style: Style, rng: &mut ChaCha8Rng) -> Scene {
        let content = match kind {
            Kind::Chart => {
                let values: Vec<u8> = (1..=MAX_VALUE).collect();
                let bars = pick(&Color::ALL, rng).into_iter().zip(pick(&values, rng));
                Content::Chart(place(bars.map(|(color, value)| Bar { color, value }), rng))
            }
            Kind::Sign => Content::Sign {
                word: WORDS[random::below(rng, WORDS.len())],
                color: Color::ALL[random::below(rng, Color::ALL.len())],
                row: 1 + random::below(rng, 2) as u8,
            },
            Kind::Shapes => {
                let shapes = pick(&Shape::ALL, rng).into_iter().zip(pick(&Color::ALL, rng));
                Content::Shapes(place(shapes, rng))
            }
        };
        Scene { style, content }
    }

    pub fn kind(&self) -> Kind {
        match self.content {
            Content::Chart(_) => Kind::Chart,
            Content::Sign { .. } => Kind::Sign,
            Content::Shapes(_) => Kind::Shapes,
        }
    }
}

/// All of `from`, shuffled.
fn pick<T: Clone>(from: &[T], rng: &mut ChaCha8Rng) -> Vec<T> {
    let mut all = from.to_vec();
    random::shuffle(rng, &mut all);
    all
}

/// Two to four of `things`, in random places.
fn place<T: Copy>(things: impl Iterator<Item = T>, rng: &mut ChaCha8Rng) -> [Option<T>; SLOTS] {
    let count = 2 + random::below(rng, SLOTS - 1);
    let mut slots = [None; SLOTS];
    for (slot, thing) in slots.iter_mut().zip(things.take(count)) {
        *slot = Some(thing);
    }
    random::shuffle(rng, &mut slots);
    slots
}
