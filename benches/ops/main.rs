//! Criterion benches, one file per op, as in src/ops. Shapes are of real models and named.
//!
//! MPA_BENCH_BACKEND=cuda runs them on a GPU, in bf16; what has no launcher there is left out. (`mpa bench ops` says more about a GPU: it
//! overwrites the caches, goes by the device's clock and names ceilings.)

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::LazyLock;
use std::time::Duration;

use clap::ValueEnum;
use criterion::{Criterion, Throughput};
use mpa::tensor::{Backend, DType, Device, Tensor};

mod adamw;
mod add;
mod attention;
mod clip_grad_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod gemm_int8;
mod kv_cache;
mod layer_norm;
mod linear;
mod lora;
mod matmul;
mod patch_embed;
mod pixel_shuffle;
mod quantize;
mod rms_norm;
mod rope;
mod sample;
mod swiglu;

/// Where an op runs: rows (tokens or patches) and columns. The demo's student has width 64 and packs about a thousand tokens.
pub struct Place {
    pub name: &'static str,
    pub rows: usize,
    pub cols: usize,
}

/// Hidden states.
pub const HIDDEN: [Place; 7] = [
    Place { name: "demo student", rows: 1000, cols: 64 },
    Place { name: "SmolVLM-256M text, decode", rows: 1, cols: 576 },
    Place { name: "SmolVLM-256M text", rows: 1024, cols: 576 },
    Place { name: "SmolVLM-256M vision", rows: 1024, cols: 768 },
    Place { name: "SmolVLM-500M text", rows: 1024, cols: 960 },
    Place { name: "Qwen2-VL-2B text", rows: 1024, cols: 1536 },
    Place { name: "Qwen2-VL-7B text", rows: 1024, cols: 3584 },
];

/// What an MLP holds between its linear layers.
pub const MLP: [Place; 7] = [
    Place { name: "demo student", rows: 1000, cols: 256 },
    Place { name: "SmolVLM-256M text, decode", rows: 1, cols: 1536 },
    Place { name: "SmolVLM-256M text", rows: 1024, cols: 1536 },
    Place { name: "SmolVLM-256M vision", rows: 1024, cols: 3072 },
    Place { name: "SmolVLM-500M text", rows: 1024, cols: 2560 },
    Place { name: "Qwen2-VL-2B text", rows: 1024, cols: 8960 },
    Place { name: "Qwen2-VL-7B text", rows: 1024, cols: 18944 },
];

/// Where the ops run: MPA_BENCH_BACKEND, the CPU without it.
static DEVICE: LazyLock<Device> = LazyLock::new(|| {
    let backend = std::env::var("MPA_BENCH_BACKEND").unwrap_or_else(|_| "cpu".into());
    let backend = Backend::from_str(&backend, true).expect("MPA_BENCH_BACKEND: cpu or cuda");
    Device::choose(backend, 0).expect("the backend is there").0
});

pub fn on_gpu() -> bool {
    *DEVICE != Device::Cpu
}

/// Values spread over [-2, 2), the same each time; f32 on the CPU, bf16 on a GPU.
pub fn tensor(shape: &[usize]) -> Tensor {
    as_dtype(shape, if on_gpu() { DType::Bf16 } else { DType::F32 })
}

/// The same in `dtype`, on the device.
pub fn as_dtype(shape: &[usize], dtype: DType) -> Tensor {
    let values = (0..shape.iter().product::<usize>() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0)
        .collect();
    let values = Tensor::from_vec(shape, values).expect("as many values as the shape has");
    placed(values.to_dtype(dtype).expect("a float type"))
}

/// The same tensor, on the device.
pub fn placed(tensor: Tensor) -> Tensor {
    tensor.to_device(&DEVICE).expect("room for it")
}

/// Times `f` as `name` at `place`; `bytes` is what must be read and written at least once.
pub fn measure(c: &mut Criterion, name: &str, place: &str, bytes: usize, f: impl FnMut()) {
    time(c, name, place, Throughput::Bytes(bytes as u64), f);
}

/// The same for an op that arithmetic limits: `flops` additions and multiplications, shown as elements.
pub fn measure_flops(c: &mut Criterion, name: &str, place: &str, flops: usize, f: impl FnMut()) {
    time(c, name, place, Throughput::Elements(flops as u64), f);
}

/// Runs a bench once; what has no kernel yet (backwards, training) fails, and its complaint is all that is said.
fn attempt(f: &mut impl FnMut()) -> Result<(), String> {
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(f));
    set_hook(hook);
    outcome.map_err(|why| why.downcast_ref::<String>().cloned().unwrap_or_default())
}

fn time(c: &mut Criterion, name: &str, place: &str, throughput: Throughput, mut f: impl FnMut()) {
    let gpu = match &*DEVICE {
        Device::Cpu => None,
        Device::Cuda(gpu) => Some(gpu),
    };
    if gpu.is_some()
        && let Err(why) = attempt(&mut f)
    {
        return eprintln!("{name}, {place}: left out: {why}");
    }
    let mut f = || {
        f();
        if let Some(gpu) = gpu {
            gpu.synchronize().expect("the device works");
        }
    };
    let mut group = c.benchmark_group(name);
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.throughput(throughput);
    group.bench_function(place, |b| b.iter(&mut f));
    group.finish();
}

criterion::criterion_main!(
    adamw::benches,
    add::benches,
    attention::benches,
    clip_grad_norm::benches,
    cross_entropy::benches,
    dropout::benches,
    embedding::benches,
    gelu::benches,
    gemm_int8::benches,
    kv_cache::benches,
    layer_norm::benches,
    linear::benches,
    lora::benches,
    matmul::benches,
    patch_embed::benches,
    pixel_shuffle::benches,
    quantize::benches,
    rms_norm::benches,
    rope::benches,
    sample::benches,
    swiglu::benches,
);
