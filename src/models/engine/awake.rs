//! Keeps the threads of the pool awake over a step. A step of decoding is hundreds of short parallel loops with little between them, and rayon's threads
//! go to sleep after some ten microseconds without work: waking one for a loop takes as long as the loop, on a virtual machine several times as long.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Looks for work, some tens of nanoseconds each, after which a thread without any lets others of the machine go first.
const LOOKS: usize = 2000;

thread_local! {
    /// This thread runs a step, or is kept awake for one. It must not begin to wait for another step, which may be waiting for its own.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// A step that this thread runs. It is over when this is dropped, however the step ends.
struct Step {
    over: Arc<AtomicBool>,
    /// What the thread was before.
    busy: bool,
}

impl Drop for Step {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        BUSY.set(self.busy);
    }
}

/// Runs `step` on a thread of the pool, while the others look for work all the time.
pub(super) fn run<T: Send>(step: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| {
        let running = Step { over: Arc::default(), busy: BUSY.replace(true) };
        let over = Arc::clone(&running.over);
        rayon::spawn_broadcast(move |_| wait(&over));
        step()
    })
}

/// Works on whatever comes until the step is over.
fn wait(over: &AtomicBool) {
    if BUSY.replace(true) {
        return;
    }
    let mut idle = 0;
    while !over.load(Ordering::Relaxed) {
        match rayon::yield_now() {
            Some(Yield::Executed) => idle = 0,
            _ if idle < LOOKS => {
                idle += 1;
                std::hint::spin_loop();
            }
            _ => std::thread::yield_now(),
        }
    }
    BUSY.set(false);
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    /// Many short loops, as a step has.
    fn step(seed: u64) -> u64 {
        (0..200u64).map(|i| (0..64u64).into_par_iter().map(|j| i * j + seed).sum::<u64>()).sum()
    }

    #[test]
    fn steps_at_once_and_within_each_other_wait_for_none() {
        let want: Vec<u64> = (0..4).map(step).collect();
        let got = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || super::run(|| step(seed)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(got, want);
        let within: Vec<u64> =
            super::run(|| (0..4).into_par_iter().map(|s| super::run(|| step(s))).collect());
        assert_eq!(within, want);
    }

    #[test]
    fn a_step_that_fails_ends_as_well() {
        assert!(std::panic::catch_unwind(|| super::run(|| panic!("a step"))).is_err());
        assert_eq!(super::run(|| step(1)), step(1));
    }
}
