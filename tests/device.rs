//! The device layer, with the CPU in the place of a GPU: memory, copies, kept launches.
#![cfg(feature = "host-kernels")]

mod common;

use std::sync::Arc;

use common::Rng;
use mpa::error::Error;
use mpa::ops::rms_norm;
use mpa::tensor::{DType, Device, Gpu, Graph, Indices, Tensor};

const EPS: f32 = 1e-5;

fn device() -> (Arc<Gpu>, Device) {
    let gpu = Gpu::host(1).unwrap();
    (Arc::clone(&gpu), Device::Cuda(gpu))
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_f32().unwrap().f32s().unwrap().to_vec()
}

#[test]
fn there_and_back_keeps_every_bit() {
    let (_, device) = device();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let here = Rng(1).tensor(&[3, 5], 10.0).to_dtype(dtype).unwrap();
        let back = here.to_device(&device).unwrap().to_device(&Device::Cpu).unwrap();
        assert_eq!((back.shape(), back.dtype()), (here.shape(), dtype));
        assert_eq!(back.bytes().unwrap(), here.bytes().unwrap());
    }
    let pixels = Tensor::from_u8(&[2, 2], vec![0, 1, 254, 255]).unwrap();
    assert_eq!(
        pixels.to_device(&device).unwrap().to_device(&Device::Cpu).unwrap().u8s().unwrap(),
        [0, 1, 254, 255]
    );
    let empty = Tensor::zeros(&[0, 4]).to_device(&device).unwrap();
    assert!(values(&empty).is_empty());
}

#[test]
fn zeros_are_zeros_and_nobody_elses_elements_change() {
    let (_, device) = device();
    for dtype in [DType::F32, DType::Bf16] {
        let filled = Rng(1).tensor(&[3, 7], 1.0).to_dtype(dtype).unwrap().to_device(&device).unwrap();
        let mut cleared = filled.clone();
        cleared.clear().unwrap();
        assert_eq!(values(&cleared), [0.0; 21]);
        assert!(values(&filled).iter().all(|&x| x != 0.0));
    }
    for device in [device, Device::Cpu] {
        let zeros = Tensor::zeros_on(&device, &[2, 5]).unwrap();
        assert_eq!((values(&zeros), zeros.device()), (vec![0.0; 10], device));
    }
}

#[test]
fn rows_are_sliced_joined_and_copied_where_they_lie() {
    let (_, device) = device();
    let here = Rng(2).tensor(&[5, 3], 1.0);
    let there = here.to_device(&device).unwrap();
    for x in [&here, &there] {
        assert_eq!(values(&x.slice(1..3).unwrap()), values(&here)[3..9]);
        let joined = Tensor::concat(&[&x.slice(4..5).unwrap(), x]).unwrap();
        assert_eq!(joined.shape(), [6, 3]);
        assert_eq!(values(&joined)[..3], values(&here)[12..]);
        let mut changed = x.clone();
        changed.copy_rows(0, 2, 2).unwrap();
        assert_eq!(values(&changed)[6..12], values(&here)[..6]);
        // A copy of a tensor is not changed with it.
        assert_eq!(values(x), values(&here));
        assert!(changed.copy_rows(0, 1, 2).is_err(), "overlapping");
        assert!(x.slice(3..6).is_err());
    }
    assert!(Tensor::concat(&[&here, &here.to_dtype(DType::Bf16).unwrap()]).is_err());
    assert!(Tensor::concat(&[&there, &here]).is_err());
}

#[test]
fn main_memory_is_not_mistaken_for_a_device() {
    let (_, device) = device();
    let there = Tensor::zeros(&[2, 2]).to_device(&device).unwrap();
    assert!(there.f32s().unwrap_err().to_string().contains("main memory"));
    assert!(there.bytes().is_err());
    assert!(there.clone().f32s_mut().is_err());
}

/// A step with temporaries of several sizes.
fn step(x: &Tensor, weight: &Tensor) -> Tensor {
    let mut sum = x.clone();
    let mut out = x.like(x.shape()).unwrap();
    rms_norm::forward_residual(&mut out, &mut sum, x, weight, EPS).unwrap();
    Tensor::concat(&[&out, &sum.slice(0..1).unwrap()]).unwrap()
}

#[test]
fn a_repeated_step_asks_the_driver_for_nothing() {
    let (gpu, device) = device();
    let x = Rng(3).tensor(&[40, 96], 1.0).to_device(&device).unwrap();
    let weight = Rng(4).tensor(&[96], 1.0).to_device(&device).unwrap();
    step(&x, &weight);
    let before = gpu.memory_use();
    for _ in 0..5 {
        step(&x, &weight);
    }
    assert_eq!(gpu.memory_use(), before);
    assert!(before.peak > before.in_use);
}

#[test]
fn unused_memory_of_other_sizes_makes_room_and_what_never_fits_is_an_error() {
    let (gpu, _) = device();
    // The host driver has 512 MiB.
    let big = 5 << 25;
    drop((gpu.alloc(big).unwrap(), gpu.alloc(2 * big).unwrap()));
    assert!(gpu.memory_use().reserved >= 3 * big);
    let held = gpu.alloc(5 << 26).unwrap();
    let error = gpu.alloc(7 << 25).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    drop(held);
    gpu.alloc(7 << 25).unwrap();
}

#[test]
fn what_is_kept_stays_near_what_was_needed() {
    let gpu = Gpu::dry();
    let mut rng = Rng(3);
    for _ in 0..200 {
        let size = 1_000_000 + rng.next() as usize % 40_000_000;
        let held: Vec<_> = (1..5).map(|i| gpu.alloc(i * size).unwrap()).collect();
        drop(held);
        let usage = gpu.memory_use();
        assert!(usage.reserved <= usage.peak + usage.peak / 10 + 1, "{usage:?}");
    }
}

#[test]
fn a_block_serves_what_is_up_to_twice_smaller() {
    let gpu = Gpu::dry();
    let take = |sizes: [usize; 2]| {
        drop(sizes.map(|bytes| gpu.alloc(bytes).unwrap()));
        gpu.memory_use().allocations
    };
    assert_eq!(take([40 << 20, 80 << 20]), 2);
    assert_eq!(take([60 << 20, 24 << 20]), 2);
    assert_eq!(take([4 << 20, 80 << 20]), 3, "the block of 40 is left to others");
}

#[test]
fn kept_launches_run_again_on_what_their_inputs_hold_then() {
    let (gpu, device) = device();
    let weight = Rng(5).tensor(&[8], 1.0).to_device(&device).unwrap();
    let (first, second) = (Rng(6).tensor(&[5, 8], 1.0), Rng(7).tensor(&[5, 8], 1.0));
    let mut x = first.to_device(&device).unwrap();
    let want = [&first, &second].map(|x| values(&step(&x.to_device(&device).unwrap(), &weight)));
    let (graph, out) = Graph::capture(&gpu, || Ok(step(&x, &weight))).unwrap();
    // Memory that others take now must not be the graph's.
    let others: Vec<Tensor> = (0..20).map(|_| first.to_device(&device).unwrap()).collect();
    graph.replay().unwrap();
    assert_eq!(values(&out), want[0]);
    x.write(&second).unwrap();
    graph.replay().unwrap();
    assert_eq!(values(&out), want[1]);
    for other in others {
        assert_eq!(values(&other), values(&first));
    }
    let reserved = gpu.memory_use().reserved;
    drop((graph, out));
    step(&x, &weight);
    assert_eq!(gpu.memory_use().reserved, reserved, "the graph's memory is used again");
}

#[test]
fn a_capture_that_fails_leaves_the_device_usable() {
    let (gpu, device) = device();
    let x = Rng(8).tensor(&[2, 8], 1.0).to_device(&device).unwrap();
    let failed = Graph::capture(&gpu, || x.to_f32());
    assert!(failed.map(|_| ()).unwrap_err().to_string().contains("download while a graph"));
    assert_eq!(values(&step(&x, &Rng(9).tensor(&[8], 1.0).to_device(&device).unwrap())).len(), 24);
}

#[test]
fn indices_stay_where_they_are_when_they_are_changed() {
    let (gpu, _) = device();
    let mut indices: Indices = vec![1, 2, 3].into();
    let before = indices.ptr(&gpu).unwrap();
    indices.set(vec![4, 5, 6]).unwrap();
    assert_eq!((indices.ptr(&gpu).unwrap(), &*indices), (before, &[4, 5, 6][..]));
    assert!(indices.set(vec![1]).is_err(), "another length");
}
