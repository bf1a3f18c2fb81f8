use std::fs;

use serde_json::json;

use crate::error::Result;

use super::Output;

pub fn run() -> Result<Output> {
    let threads = rayon::current_num_threads();
    let simd = simd();
    let memory = memory();
    let driver = nvidia_driver();
    let cuda = "none: this binary has no CUDA kernels, so everything runs on the CPU";
    let json = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "target": target(),
        "threads": threads,
        "simd": simd,
        "memory_bytes": memory.map(|(total, _)| total),
        "memory_free_bytes": memory.map(|(_, free)| free),
        "devices": ["cpu"],
        "driver": driver,
        "cuda": {"kernels": 0, "why": cuda},
    });
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let memory = memory.map_or("unknown (no /proc/meminfo)".to_string(), |(total, free)| {
        format!("{:.1} GiB, {:.1} GiB free", gib(total), gib(free))
    });
    let simd = if simd.is_empty() { "none known".to_string() } else { simd.join(" ") };
    let driver = driver.unwrap_or(format!("no NVIDIA driver: there is no {DRIVER}"));
    let text = format!(
        "mpa {} for {}\nthreads   {threads} (RAYON_NUM_THREADS sets how many)\nSIMD      {simd}\nmemory    {memory}\ndevices   cpu\n\
         driver    {driver}\nkernels   {cuda}\nmodels    the two of `mpa demo` are in this binary; others come from folders or the hub",
        env!("CARGO_PKG_VERSION"),
        target()
    );
    Output::new(&json, text)
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

/// Total and free memory in bytes, on Linux.
fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((value("MemTotal:")?, value("MemAvailable:")?))
}
