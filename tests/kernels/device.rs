//! Devices that run kernels on this CPU, and tensors on them.

use std::fmt;

use mpa::tensor::{Card, DType, Device, Gpu, Tensor};

use crate::common::{Rng, Tolerance, f32_sum};

/// The types that kernels are made for.
pub const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Runs `test` with several orders of warps and lanes: a missing barrier shows in some of them. Odd seeds let a warp run ahead of the others,
/// even ones step them together.
pub fn on_each_device(test: impl Fn(&Device)) {
    on_each(Card::H100, test);
}

/// The same for the kernels that any GPU runs, where there are others for Hopper.
pub fn on_each_device_without_hopper(test: impl Fn(&Device)) {
    on_each(Card::OTHER, test);
}

/// The same for the kernels that such a card takes.
pub fn on_each(card: Card, test: impl Fn(&Device)) {
    for seed in seeds() {
        let gpu = Gpu::host_of(card, seed).unwrap();
        assert!(card.hopper || !gpu.hopper());
        test(&Device::Cuda(gpu));
    }
}

/// A card that small matrices fill, so that it takes the kernels for large ones.
pub const TINY: Card = Card { multiprocessors: 1, ..Card::OTHER };

/// One device, of the first seed: for what takes long. The processes that scripts/test-kernels.sh runs side by side have different ones.
pub fn first_device(card: Card) -> Device {
    Device::Cuda(Gpu::host_of(card, seeds()[0]).unwrap())
}

/// MPA_KERNEL_SEEDS=1,2 names others: ThreadSanitizer, which takes long, sees what no barrier orders in whatever order it comes.
fn seeds() -> Vec<u64> {
    let named = std::env::var("MPA_KERNEL_SEEDS").unwrap_or_else(|_| "1,2,3".to_string());
    named.split(',').map(|seed| seed.parse().unwrap()).collect()
}

/// Uniform in [-scale, scale), rounded to `dtype`, on `device`.
pub fn random(rng: &mut Rng, device: &Device, dtype: DType, shape: &[usize], scale: f32) -> Tensor {
    rng.tensor(shape, scale).to_dtype(dtype).unwrap().to_device(device).unwrap()
}

/// An output: full of NaN, as all fresh memory of a host device is.
pub fn output(like: &Tensor, shape: &[usize]) -> Tensor {
    like.like(shape).unwrap()
}

/// What a device holds, as f32 in main memory.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_f32().unwrap().f32s().unwrap().to_vec()
}

/// An f32 sum of `n` terms of size about `size`, then rounded once to `dtype`: bf16 keeps 8 bits, so that rounding is off by up to 2^-8 of the value.
pub fn rounded_sum(dtype: DType, n: usize, size: f64) -> Tolerance {
    let sum = f32_sum(n);
    match dtype {
        DType::Bf16 => Tolerance { abs: sum.abs * size, rel: 2f64.powi(-8) + sum.rel },
        _ => Tolerance { abs: sum.abs * size, rel: sum.rel },
    }
}

/// A name for messages.
pub fn what(parts: &[&dyn fmt::Display]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
