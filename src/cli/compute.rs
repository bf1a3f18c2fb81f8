//! Which device the models of a command run on, and how commands that look at devices say what they found.

use std::fmt;

use crate::error::Result;
use crate::mpa::engine::Native;
use crate::mpa::progress::Progress;
use crate::tensor::{Backend, DType, Device, Place};

use super::args::{Compute, FloatType};

/// As the arguments say; tells the user what that is and why.
pub fn native(args: &Compute, progress: &Progress) -> Result<Native> {
    let (device, why) = Device::choose(args.backend, args.device)?;
    progress.note(&format!("device: {device} ({why})"));
    Ok(Native(Place { device, dtype: dtype(args), keep: args.dtype.is_none() }))
}

/// Of weights, and of activations on a GPU.
pub fn dtype(args: &Compute) -> DType {
    match args.dtype {
        None | Some(FloatType::Bf16) => DType::Bf16,
        Some(FloatType::F32) => DType::F32,
    }
}

/// For the demo, whose models are too small for a GPU to be of use: one is taken only if it is asked for.
pub fn native_if_asked(args: &Compute, progress: &Progress) -> Result<Native> {
    if args.backend == Backend::Auto { Ok(Native::cpu()) } else { native(args, progress) }
}

/// What a record of a device's work has to name.
pub struct Facts {
    pub gpu: String,
    pub driver: String,
    pub commit: &'static str,
}

impl Facts {
    pub fn of(device: &Device) -> Facts {
        let (gpu, driver) = match device {
            Device::Cpu => ("cpu".to_string(), "none".to_string()),
            Device::Cuda(gpu) => (gpu.name().to_string(), gpu.driver_version()),
        };
        Facts { gpu, driver, commit: env!("MPA_COMMIT") }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, driver {}, commit {}", self.gpu, self.driver, self.commit)
    }
}

/// Columns as wide as their longest entry; the last as it is.
pub fn align<const N: usize>(lines: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for line in lines {
        for (width, entry) in widths.iter_mut().zip(line) {
            *width = (*width).max(entry.chars().count());
        }
    }
    let join = |line: &[String; N]| {
        let entries = line.iter().zip(widths).map(|(entry, width)| format!("{entry:<width$}"));
        entries.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    lines.iter().map(join).collect::<Vec<_>>().join("\n")
}
