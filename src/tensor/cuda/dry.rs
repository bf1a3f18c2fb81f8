//! A GPU that does nothing and whose memory never ends: what runs on it says how much memory it takes, and when, and which kernels.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::args::MapBytes;
use super::{Arg, Card, Driver, Launch, Mark, Matmul, Replay, TensorMap};
use crate::error::Result;

/// Addresses are given out once and never looked at.
pub(super) struct Dry {
    next: AtomicU64,
    card: Card,
    /// Whether matrix products are the vendor's.
    vendor: bool,
    /// Of each kernel, the most dynamic shared memory that a launch asked for.
    launched: Mutex<BTreeMap<String, usize>>,
}

impl Dry {
    pub(super) fn new(card: Card, vendor: bool) -> Self {
        Dry { next: AtomicU64::new(1 << 40), card, vendor, launched: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Nothing;

impl Replay for Nothing {
    fn launch(&self) -> Result<()> {
        Ok(())
    }
}

impl Driver for Dry {
    fn name(&self) -> &str {
        "dry run"
    }

    fn version(&self) -> String {
        "none".into()
    }

    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        Ok(Some(self.next.fetch_add(bytes.next_multiple_of(256) as u64, Ordering::Relaxed)))
    }

    fn free(&self, _ptr: u64) {}

    fn upload(&self, _to: u64, _from: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Zeros.
    fn download(&self, to: &mut [u8], _from: u64) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn copy(&self, _to: u64, _from: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _at: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn launch(&self, kernel: &str, launch: Launch, _args: &[Arg]) -> Result<()> {
        let mut launched = self.lock();
        match launched.get_mut(kernel) {
            Some(most) => *most = launch.shared.max(*most),
            None => drop(launched.insert(kernel.to_string(), launch.shared)),
        }
        Ok(())
    }

    fn launched(&self) -> BTreeMap<String, usize> {
        self.lock().clone()
    }

    fn card(&self) -> Card {
        self.card
    }

    fn vendor(&self) -> bool {
        self.vendor
    }

    fn tensor_map(&self, _map: &TensorMap) -> Result<Arg> {
        Ok(Arg::map(MapBytes([0; 128])))
    }

    fn matmul(&self, _job: &Matmul) -> Result<bool> {
        Ok(self.vendor)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn mark(&self) -> Result<Mark> {
        Ok(Mark::Time(Instant::now()))
    }

    fn between(&self, _from: &Mark, _to: &Mark) -> Result<f32> {
        Ok(0.0)
    }

    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Replay>> {
        Ok(Box::new(Nothing))
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((usize::MAX / 2, usize::MAX / 2))
    }
}
