//! Which device the models of a command run on.

use crate::error::{Error, Result};
use crate::mpa::engine::Native;
use crate::mpa::progress::Progress;
use crate::tensor::{Backend, DType, Device};

use super::args::{Compute, GpuType};

/// As the arguments say; tells the user what that is and why.
pub fn native(args: &Compute, progress: &Progress) -> Result<Native> {
    let (device, why) = Device::choose(args.backend, args.device)?;
    progress.note(&format!("device: {device} ({why})"));
    let dtype = match args.dtype {
        GpuType::Bf16 => DType::Bf16,
        GpuType::F32 => DType::F32,
    };
    Ok(Native { device, dtype })
}

/// For the demo, whose models are too small for a GPU to be of use: one is taken only if it is asked for.
pub fn native_if_asked(args: &Compute, progress: &Progress) -> Result<Native> {
    if args.backend == Backend::Auto { Ok(Native::cpu()) } else { native(args, progress) }
}

/// For training, which needs kernels that are not there yet.
pub fn cpu_only(args: &Compute, what: &str) -> Result<Native> {
    if matches!(args.backend, Backend::Auto | Backend::Cpu) {
        return Ok(Native::cpu());
    }
    Err(Error::Usage(format!("{what} runs on the CPU only so far, expected --backend auto or cpu")))
}
