//! Criterion benches, one file per op, as in src/ops. Shapes are of real models and named.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use mpa::tensor::Tensor;

mod adamw;
mod add;
mod attention;
mod clip_grad_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod layer_norm;
mod linear;
mod lora;
mod matmul;
mod patch_embed;
mod pixel_shuffle;
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
pub const HIDDEN: [Place; 4] = [
    Place { name: "demo student", rows: 1000, cols: 64 },
    Place { name: "SmolVLM-256M text, decode", rows: 1, cols: 576 },
    Place { name: "SmolVLM-256M text", rows: 1024, cols: 576 },
    Place { name: "SmolVLM-256M vision", rows: 1024, cols: 768 },
];

/// What an MLP holds between its linear layers.
pub const MLP: [Place; 4] = [
    Place { name: "demo student", rows: 1000, cols: 256 },
    Place { name: "SmolVLM-256M text, decode", rows: 1, cols: 1536 },
    Place { name: "SmolVLM-256M text", rows: 1024, cols: 1536 },
    Place { name: "SmolVLM-256M vision", rows: 1024, cols: 3072 },
];

/// Values spread over [-2, 2), the same each time.
pub fn tensor(shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product::<usize>() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0)
        .collect();
    Tensor::from_vec(shape, values).expect("as many values as the shape has")
}

/// Times `f` as `name` at `place`; `bytes` is what must be read and written at least once.
pub fn measure(c: &mut Criterion, name: &str, place: &str, bytes: usize, f: impl FnMut()) {
    time(c, name, place, Throughput::Bytes(bytes as u64), f);
}

/// The same for an op that arithmetic limits: `flops` additions and multiplications, shown as elements.
pub fn measure_flops(c: &mut Criterion, name: &str, place: &str, flops: usize, f: impl FnMut()) {
    time(c, name, place, Throughput::Elements(flops as u64), f);
}

fn time(c: &mut Criterion, name: &str, place: &str, throughput: Throughput, mut f: impl FnMut()) {
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
    layer_norm::benches,
    linear::benches,
    lora::benches,
    matmul::benches,
    patch_embed::benches,
    pixel_shuffle::benches,
    rms_norm::benches,
    rope::benches,
    sample::benches,
    swiglu::benches,
);
