//! How long a call takes: the median of many, each after the caches were overwritten.

use std::time::{Duration, Instant};

use super::cases::Maker;
use crate::error::Result;
use crate::tensor::{Device, Tensor};

/// Written between runs: several times the last-level cache.
const GPU_FLUSH: usize = 256 << 20;
const CPU_FLUSH: usize = 64 << 20;
const WARM_UP: usize = 3;
const REPEATS: usize = 30;
/// A CPU stops after this time, with at least so many runs.
const PATIENCE: (Duration, usize) = (Duration::from_millis(500), 3);

pub(super) struct Clock {
    device: Device,
    /// Rows of equal length, of which half are copied over the others.
    flush: Option<Tensor>,
    quick: bool,
}

/// Whether a device is none that one would benchmark in earnest: a CPU, also in the place of a GPU.
pub(super) fn is_small(device: &Device) -> Result<bool> {
    Ok(match device {
        Device::Cpu => true,
        Device::Cuda(gpu) => gpu.memory()?.1 < 4 << 30,
    })
}

impl Clock {
    pub(super) fn new(device: &Device, maker: &Maker, small: bool, quick: bool) -> Result<Clock> {
        let bytes = if small { CPU_FLUSH } else { GPU_FLUSH };
        let row = 1 << 20;
        let rows = bytes / maker.dtype().size() / row;
        let flush = if quick { None } else { Some(maker.random(&[rows, row])?) };
        Ok(Clock { device: device.clone(), flush, quick })
    }

    pub(super) fn median_us(&mut self, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let (warm_up, repeats) = if self.quick { (0, 1) } else { (WARM_UP, REPEATS) };
        let began = Instant::now();
        for done in 0..warm_up {
            if done == 0 || !self.impatient(began, PATIENCE.1) {
                run()?;
            }
        }
        let mut times = Vec::with_capacity(repeats);
        let began = Instant::now();
        while times.len() < repeats && !self.impatient(began, times.len()) {
            self.overwrite_caches()?;
            times.push(self.once(run)?);
        }
        times.sort_by(f64::total_cmp);
        let (a, b) = (times[(times.len() - 1) / 2], times[times.len() / 2]);
        Ok((a + b) / 2.0)
    }

    fn impatient(&self, began: Instant, done: usize) -> bool {
        self.device == Device::Cpu && done >= PATIENCE.1 && began.elapsed() > PATIENCE.0
    }

    fn overwrite_caches(&mut self) -> Result<()> {
        let Some(flush) = &mut self.flush else { return Ok(()) };
        let half = flush.shape()[0] / 2;
        flush.copy_rows(0, half, half)
    }

    /// Microseconds. On a GPU the launches are queued while the caches are still being overwritten, so that none of it is waiting for the CPU.
    fn once(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let Device::Cuda(gpu) = &self.device else {
            let began = Instant::now();
            run()?;
            return Ok(began.elapsed().as_secs_f64() * 1e6);
        };
        let from = gpu.mark()?;
        run()?;
        let to = gpu.mark()?;
        Ok(f64::from(gpu.milliseconds(&from, &to)?) * 1e3)
    }
}
