//! A program that is killed again and again.

use std::process::Child;
use std::time::Duration;

/// Starts it until it ends by itself, which takes `took` undisturbed, and kills it before that: returns how often. Each life is longer than the one
/// before by `step` of that time, so that the kills fall into every stage.
pub fn until_done(took: Duration, step: f64, mut start: impl FnMut() -> Child) -> usize {
    for kills in 0..200_usize {
        let mut child = start();
        let share = step * (2 + kills % 30) as f64;
        std::thread::sleep(took.mul_f64(share) + Duration::from_millis(kills as u64 % 7));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return kills;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    200
}
