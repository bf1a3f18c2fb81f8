//! What answering took.

use std::ops::AddAssign;
use std::time::Duration;

/// Where the time went, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Spent {
    /// The vision side, over so many pictures.
    #[serde(serialize_with = "seconds")]
    pub vision: Duration,
    pub pictures: usize,
    /// Passes over prompts, with the first new tokens; tokens that went through the model, of drafts as well, and those that did not have to.
    #[serde(serialize_with = "seconds")]
    pub prefill: Duration,
    pub prompt_tokens: usize,
    pub shared_tokens: usize,
    /// Decode steps, and tokens that they gave.
    #[serde(serialize_with = "seconds")]
    pub decode: Duration,
    pub steps: usize,
    pub new_tokens: usize,
    /// How often memory did not do, which had been foretold to do, and what was under way began again.
    pub restarts: usize,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.vision += other.vision;
        self.pictures += other.pictures;
        self.prefill += other.prefill;
        self.prompt_tokens += other.prompt_tokens;
        self.shared_tokens += other.shared_tokens;
        self.decode += other.decode;
        self.steps += other.steps;
        self.new_tokens += other.new_tokens;
        self.restarts += other.restarts;
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}
