//! The bits of the CPU, which tests/ops/kv_cache.rs compares with quantised rows.
use mpa::ops::kv_cache::{PAGE, PageType, Pages, gather, store};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, assert_op_error};
use crate::device::{DTYPES, on_each_device, random, values, what};

const KINDS: [PageType; 2] = [PageType::Float, PageType::Int8];

/// Key/value heads and head size: one of each, odd ones, less than a warp's packs, more than one round of them.
const HEADS: [(usize, usize); 9] =
    [(1, 1), (3, 5), (1, 8), (2, 16), (5, 64), (2, 100), (1, 128), (2, 264), (1, 259)];

/// All NaN are one.
fn bits(x: &Tensor) -> Vec<u32> {
    values(x).iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Pages that hold `before` all over.
fn filled(like: &Tensor, count: usize, (heads, hs): (usize, usize), kind: PageType, before: f32) -> Pages {
    let mut pages = Pages::new(like, count, heads, hs, kind).unwrap();
    let x = Tensor::from_vec(&[count * PAGE, heads * hs], vec![before; count * PAGE * heads * hs]).unwrap();
    let x = x.to_dtype(like.dtype()).unwrap().to_device(&like.device()).unwrap();
    store(&mut pages, &x, &(0..x.rows() as u32).collect()).unwrap();
    pages
}

/// Pages of `list` after x has been stored at `rows`, where x is.
fn stored(x: &Tensor, heads: (usize, usize), kind: PageType, rows: &[u32], list: &[u32]) -> Vec<u32> {
    let last = rows.iter().map(|row| row / PAGE as u32).chain(list.iter().copied()).max().unwrap();
    let mut pages = filled(x, last as usize + 1, heads, kind, 9.0);
    store(&mut pages, x, &rows.into()).unwrap();
    let mut out = x.like(&[list.len() * PAGE, x.cols()]).unwrap();
    gather(&mut out, &pages, &list.into()).unwrap();
    bits(&out)
}

/// On the device as on the CPU. What comes from int8 is rounded to the type of x.
#[track_caller]
fn check(name: &str, x: &Tensor, heads: (usize, usize), kind: PageType, rows: &[u32], list: &[u32]) {
    let got = stored(x, heads, kind, rows, list);
    let want = stored(&x.to_f32().unwrap(), heads, kind, rows, list);
    let want: Vec<f32> = want.into_iter().map(f32::from_bits).collect();
    let want = Tensor::from_vec(&[want.len()], want).unwrap().to_dtype(x.dtype()).unwrap();
    assert!(got == bits(&want), "{name}");
}

#[test]
fn rows_are_stored_and_gathered_with_the_bits_of_the_cpu() {
    // First and last rows of two pages, in any order; more than a block's; the rest keeps what it held.
    let rows = [255, 0, 127, 128, 200, 1, 254, 64, 129];
    on_each_device(|device| {
        let mut rng = Rng(1);
        for heads in HEADS {
            for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
                for n in [4, 9] {
                    let x = random(&mut rng, device, dtype, &[n, heads.0 * heads.1], 3.0);
                    let name = what(&[&format!("{heads:?} {kind:?}"), &dtype, &n]);
                    check(&name, &x, heads, kind, &rows[..n], &[0, 1]);
                }
            }
        }
    });
}

#[test]
fn pages_are_gathered_in_the_order_of_the_list() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
            for heads in [(2, 16), (3, 5)] {
                // Every row of every page is another.
                let x = random(&mut rng, device, dtype, &[4 * PAGE, heads.0 * heads.1], 1.0);
                let rows: Vec<u32> = (0..512).map(|i| i * 5 % 512).collect();
                for list in [&[3, 1][..], &[0], &[2, 2, 0, 3, 1], &[]] {
                    check(&what(&[&format!("{list:?} {kind:?}"), &dtype]), &x, heads, kind, &rows, list);
                }
            }
        }
    });
}

#[test]
fn heads_of_zeros_and_without_bounds_and_ties() {
    on_each_device(|device| {
        let (big, tiny) = (f32::MAX, f32::MIN_POSITIVE / 8.0);
        // Three heads a row: what one holds says nothing about the others.
        let rows = [
            [0.0, -0.0, 0.0, tiny, -tiny, 0.0, 1.0, 2.0, -3.0],
            [0.99e-36, 0.0, 0.0, 1e-36, 0.0, -0.5e-36, 1.01e-36, 0.5e-36, 0.0],
            [big, -big, 0.0, f32::INFINITY, 1.0, -1.0, 1.0, f32::NAN, 2.0],
            [f32::NEG_INFINITY, f32::NAN, 0.0, 127.0, 0.5, -1.5, 127.0, 2.5, -0.5],
        ];
        for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
            let x = Tensor::from_vec(&[rows.len(), 9], rows.concat()).unwrap().to_dtype(dtype).unwrap();
            check("values", &x.to_device(device).unwrap(), (3, 3), kind, &[130, 127, 5, 200], &[0, 1]);
        }
    });
}

#[test]
fn the_largest_may_be_anywhere_in_a_head() {
    on_each_device(|device| {
        for (hs, dtype) in [(40, DType::F32), (264, DType::Bf16), (259, DType::Bf16), (132, DType::F32)] {
            for place in [0, 1, 7, 31, 32, hs / 2, hs - 9, hs - 1].into_iter().filter(|&p| p < hs) {
                let mut data = vec![0.25; 2 * hs];
                data[place] = -3.0;
                data[hs + (place + 1) % hs] = 5.0;
                let x = Tensor::from_vec(&[1, 2 * hs], data).unwrap().to_dtype(dtype).unwrap();
                let x = x.to_device(device).unwrap();
                check(&what(&[&hs, &dtype, &place]), &x, (2, hs), PageType::Int8, &[77], &[0]);
            }
        }
    });
}

#[test]
fn nothing_to_store() {
    on_each_device(|device| {
        for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
            let x = random(&mut Rng(3), device, dtype, &[0, 6], 1.0);
            check("no rows", &x, (2, 3), kind, &[], &[1]);
            let x = random(&mut Rng(3), device, dtype, &[2, 0], 1.0);
            check("no columns", &x, (0, 3), kind, &[1, 2], &[0]);
        }
    });
}

/// A sequence goes on from a copy of another's unfinished page.
#[test]
fn rows_are_copied_with_their_scales() {
    on_each_device(|device| {
        for kind in KINDS {
            let x = random(&mut Rng(4), device, DType::Bf16, &[40, 16], 1.0);
            let mut pages = filled(&x, 2, (2, 8), kind, 9.0);
            store(&mut pages, &x, &(10..50).collect()).unwrap();
            pages.copy_rows(10, PAGE, 40).unwrap();
            let mut out = x.like(&[2 * PAGE, 16]).unwrap();
            gather(&mut out, &pages, &vec![0, 1].into()).unwrap();
            let out = bits(&out);
            assert_eq!(out[10 * 16..50 * 16], out[PAGE * 16..(PAGE + 40) * 16], "{kind:?}");
        }
    });
}

#[test]
fn wrong_rows_types_and_devices_are_refused() {
    on_each_device(|device| {
        for kind in KINDS {
            let x = random(&mut Rng(5), device, DType::F32, &[2, 6], 1.0);
            let mut pages = filled(&x, 2, (2, 3), kind, 0.0);
            let op = "kv_cache store";
            assert_op_error(store(&mut pages, &x, &vec![0, 256].into()), op, "rows below 256");
            assert_op_error(store(&mut pages, &x, &vec![0].into()), op, "x [1, 6]");
            let half = x.to_dtype(DType::F16).unwrap().to_device(device).unwrap();
            assert_op_error(store(&mut pages, &half, &vec![0, 1].into()), op, "all f32 or all bf16");
            let here = x.to_device(&Device::Cpu).unwrap();
            assert!(store(&mut pages, &here, &vec![0, 1].into()).is_err(), "x in main memory");
            let op = "kv_cache gather";
            let mut out = x.like(&[PAGE, 6]).unwrap();
            assert_op_error(gather(&mut out, &pages, &vec![2].into()), op, "pages below 2");
            assert_op_error(gather(&mut out, &pages, &vec![0, 1].into()), op, "out [256, 6]");
            let mut off = Tensor::zeros(&[PAGE, 6]);
            assert!(gather(&mut off, &pages, &vec![0].into()).is_err(), "out in main memory");
        }
        let narrow = random(&mut Rng(5), device, DType::Bf16, &[2, 6], 1.0);
        let mut pages = filled(&narrow, 1, (2, 3), PageType::Float, 0.0);
        let wide = random(&mut Rng(5), device, DType::F32, &[2, 6], 1.0);
        let result = store(&mut pages, &wide, &vec![0, 1].into());
        assert_op_error(result, "kv_cache store", "all f32 or all bf16");
        let mut out = wide.like(&[PAGE, 6]).unwrap();
        assert_op_error(gather(&mut out, &pages, &vec![0].into()), "kv_cache gather", "all f32 or all bf16");
    });
}
