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

/// Says that a step is over, however it ends.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `step` on a thread of the pool, while the others look for work all the time.
pub(super) fn run<T: Send>(step: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| {
        let done = Done(Arc::default());
        let over = Arc::clone(&done.0);
        let before = BUSY.replace(true);
        rayon::spawn_broadcast(move |_| wait(&over));
        let outcome = step();
        BUSY.set(before);
        outcome
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
