//! The devices that can hold a tensor and run an op.

use std::fmt;
use std::sync::Arc;

use super::DType;
use super::cuda::{Gpu, NO_KERNELS, gpu_count};
use crate::error::{Error, Result};

#[derive(Clone)]
pub enum Device {
    Cpu,
    Cuda(Arc<Gpu>),
}

/// Where a model is, and the type of its activations there, weights included; in main memory activations are always f32.
#[derive(Clone, Debug)]
pub struct Place {
    pub device: Device,
    pub dtype: DType,
    /// Weights in main memory stay of the type they have.
    pub keep: bool,
}

impl Place {
    pub fn cpu() -> Place {
        Place { device: Device::Cpu, dtype: DType::F32, keep: true }
    }
}

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// A GPU if there is one that can be used, else the CPU
    Auto,
    Cpu,
    Cuda,
    /// The GPU's kernels, run on the CPU: slow, for tests
    #[cfg(feature = "host-kernels")]
    Host,
}

impl Device {
    /// The device for `backend`, and why it is this one; `ordinal` is a GPU's.
    pub fn choose(backend: Backend, ordinal: usize) -> Result<(Device, String)> {
        let asked = || "as asked".to_string();
        match backend {
            Backend::Cpu => Ok((Device::Cpu, asked())),
            Backend::Cuda => Ok((Device::Cuda(Gpu::open(ordinal)?), asked())),
            #[cfg(feature = "host-kernels")]
            Backend::Host => Ok((Device::Cuda(Gpu::host(1)?), asked())),
            Backend::Auto => Device::best(ordinal),
        }
    }

    /// A GPU that could be used but fails now is an error: on the CPU the same run may take days.
    fn best(ordinal: usize) -> Result<(Device, String)> {
        if let Some(why) = NO_KERNELS {
            return Ok((Device::Cpu, format!("this binary has no CUDA kernels: {why}")));
        }
        if let Err(why) = gpu_count() {
            return Ok((Device::Cpu, why));
        }
        match Gpu::open(ordinal) {
            Ok(gpu) if gpu.has_cublaslt() => Ok((Device::Cuda(gpu), "a GPU that the kernels run on".into())),
            Ok(gpu) => {
                Ok((Device::Cuda(gpu), "a GPU that the kernels run on; slower for want of cuBLASLt".into()))
            }
            Err(Error::Usage(why)) => Ok((Device::Cpu, why)),
            Err(error) => Err(error),
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Device::Cpu, Device::Cpu) => true,
            (Device::Cuda(a), Device::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(gpu) => f.write_str(gpu.name()),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Total and available main memory in bytes; none where there is no /proc/meminfo.
pub fn main_memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((value("MemTotal:")?, value("MemAvailable:")?))
}
