use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::selftest;
use crate::tensor::{self, GpuFacts};

use super::Output;
use super::args;

pub fn run(args: &args::Doctor) -> Result<Output> {
    if args.kernels { kernels() } else { machine() }
}

fn machine() -> Result<Output> {
    let threads = rayon::current_num_threads();
    let simd = simd();
    let memory = tensor::main_memory();
    let driver = nvidia_driver();
    let cuda = Cuda::ask();
    let json = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "target": target(),
        "threads": threads,
        "simd": simd,
        "memory_bytes": memory.map(|(total, _)| total),
        "memory_free_bytes": memory.map(|(_, free)| free),
        "devices": cuda.devices(),
        "driver": driver,
        "cuda": cuda,
    });
    let memory = memory.map_or("unknown (no /proc/meminfo)".to_string(), |(total, free)| {
        format!("{:.1} GiB, {:.1} GiB free", gib(total), gib(free))
    });
    let simd = if simd.is_empty() { "none known".to_string() } else { simd.join(" ") };
    let driver = driver.unwrap_or(format!("no NVIDIA driver: there is no {DRIVER}"));
    let text = format!(
        "mpa {} for {}\nthreads   {threads} (RAYON_NUM_THREADS sets how many)\nSIMD      {simd}\nmemory    {memory}\ndevices   {}\n\
         driver    {driver}\n{}models    the two of `mpa demo` are in this binary; others come from folders or the hub",
        env!("CARGO_PKG_VERSION"),
        target(),
        cuda.devices().join(" "),
        cuda.text(),
    );
    Output::new(&json, text)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// What there is of CUDA: in this binary, and on this machine.
#[derive(Serialize)]
struct Cuda {
    kernels: usize,
    /// Those with machine code in this binary; later ones get theirs from its PTX.
    architectures: BTreeSet<String>,
    /// The version of the compiler that made the kernels.
    nvcc: Option<&'static str>,
    libcuda: bool,
    cublaslt: bool,
    gpus: Vec<GpuFacts>,
    /// What keeps this binary from using a GPU here, or from doing so at full speed.
    missing: Vec<String>,
}

impl Cuda {
    fn ask() -> Cuda {
        let (libcuda, cublaslt) = tensor::cuda_libraries();
        let mut missing = Vec::new();
        if let Some(why) = tensor::NO_KERNELS {
            missing.push(format!("kernels: this binary was built without CUDA kernels, since {why}"));
        }
        let gpus = tensor::gpus().unwrap_or_else(|why| {
            missing.push(format!("a GPU: {why}"));
            Vec::new()
        });
        let too_old = |gpu: &GpuFacts| {
            format!("a newer GPU: {} has capability {}, the kernels need 8.0", gpu.name, gpu.capability)
        };
        missing.extend(gpus.iter().filter(|gpu| !gpu.usable).map(too_old));
        if !cublaslt {
            missing.push(
                "cuBLASLt: there is no libcublasLt.so; the CUDA toolkit or the wheel nvidia-cublas has it"
                    .into(),
            );
        }
        let nvcc = Some(tensor::NVCC).filter(|version| !version.is_empty());
        let architectures =
            tensor::kernel_resources(&BTreeMap::new()).into_iter().map(|row| row.arch).collect();
        Cuda { kernels: tensor::kernel_count(), architectures, nvcc, libcuda, cublaslt, gpus, missing }
    }

    /// As --device and records name them.
    fn devices(&self) -> Vec<String> {
        let usable = self.gpus.iter().enumerate().filter(|(_, gpu)| gpu.usable && self.kernels > 0);
        ["cpu".to_string()].into_iter().chain(usable.map(|(i, _)| format!("cuda:{i}"))).collect()
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        lines.push(match self.nvcc {
            Some(nvcc) => {
                let architectures: Vec<&str> = self.architectures.iter().map(String::as_str).collect();
                format!("kernels   {} for {} (nvcc {nvcc})", self.kernels, architectures.join(" "))
            }
            None => "kernels   none: everything runs on the CPU".to_string(),
        });
        let found = |there: bool| if there { "found" } else { "not found" };
        lines.push(format!("libcuda   {}", found(self.libcuda)));
        lines.push(format!("cuBLASLt  {}", found(self.cublaslt)));
        lines.extend(self.gpus.iter().enumerate().map(|(i, gpu)| {
            let GpuFacts { name, memory_bytes, capability, .. } = gpu;
            format!("GPU {i}     {name}, {:.1} GiB, capability {capability}", gib(*memory_bytes as u64))
        }));
        lines.extend(self.missing.iter().map(|what| format!("missing   {what}")));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// kernels/resources.tsv of this binary.
fn kernels() -> Result<Output> {
    if let Some(why) = tensor::NO_KERNELS {
        return Err(Error::Usage(format!("this binary was built without CUDA kernels, since {why}")));
    }
    let dynamic = selftest::dynamic_shared();
    let json = json!({"nvcc": tensor::NVCC, "kernels": tensor::kernel_resources(&dynamic)});
    Output::new(&json, tensor::resources_table(&dynamic).trim_end())
}

/// Where a loaded NVIDIA driver says its version.
const DRIVER: &str = "/proc/driver/nvidia/version";

fn nvidia_driver() -> Option<String> {
    let text = fs::read_to_string(DRIVER).ok()?;
    text.lines().next().map(|line| line.trim().to_string())
}

fn target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// What the CPU kernels can use of this machine.
#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    let features = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    features.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Vec<&'static str> {
    if cfg!(target_arch = "aarch64") { vec!["neon"] } else { Vec::new() }
}
