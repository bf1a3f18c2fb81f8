//! Launches that are kept and queued again at once: a decode step is hundreds of small kernels, and queueing them one by one takes longer
//! than running them.

use std::sync::Arc;

use super::arena::Pool;
use super::{Gpu, Replay};
use crate::error::Result;

/// Kept launches. They read and write the addresses that they were given, so whoever replays them keeps the tensors alive that existed
/// before the capture; what was made during it stays as long as the graph does.
pub struct Graph {
    replay: Box<dyn Replay>,
    _memory: Arc<Pool>,
    // Last: the others need it when they are dropped.
    gpu: Arc<Gpu>,
}

impl Graph {
    /// Runs `f` without running what it launches, and keeps that. All its memory is set aside for the graph. `f` may neither upload nor
    /// download, and should have run once before, so that what it needs is on the device.
    pub fn capture<T>(gpu: &Arc<Gpu>, f: impl FnOnce() -> Result<T>) -> Result<(Graph, T)> {
        let memory = gpu.arena().set_aside(gpu)?;
        let started = gpu.driver.begin_capture();
        let made = started.and_then(|()| {
            let made = f();
            // A capture must be ended also when it failed.
            let replay = gpu.driver.end_capture();
            Ok((replay?, made?))
        });
        gpu.arena().end_set_aside();
        let (replay, made) = made?;
        Ok((Graph { gpu: Arc::clone(gpu), replay, _memory: memory }, made))
    }

    /// Queues the launches again.
    pub fn replay(&self) -> Result<()> {
        self.replay.launch()
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}
