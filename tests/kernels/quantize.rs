use mpa::ops::quantize::{MOST_ROTATED, forward};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, assert_op_error};
use crate::device::{DTYPES, TINY, on_each, on_each_device, random, what};

/// Elements and scales, of the device or of the CPU, for the same x.
fn quantised(x: &Tensor, rotation: usize) -> (Vec<i8>, Vec<u32>) {
    let poison = Tensor::from_i8(x.shape(), vec![99; x.len()]).unwrap();
    let mut q = poison.to_device(&x.device()).unwrap();
    let mut scale = x.like_f32(&[x.rows()]).unwrap();
    forward(&mut q, &mut scale, x, rotation).unwrap();
    here(&q, &scale)
}

fn here(q: &Tensor, scale: &Tensor) -> (Vec<i8>, Vec<u32>) {
    let [q, scale] = [q, scale].map(|t| t.to_device(&Device::Cpu).unwrap());
    // All NaN are one.
    let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    (q.i8s().unwrap().to_vec(), scale.f32s().unwrap().iter().map(bits).collect())
}

/// By every rotation that the row allows.
fn check(name: &str, x: &Tensor) {
    let here = x.to_device(&Device::Cpu).unwrap();
    let sizes =
        (0..).map(|i| 1 << i).take_while(|&size| size <= MOST_ROTATED && x.cols().is_multiple_of(size));
    for rotation in sizes {
        assert!(quantised(x, rotation) == quantised(&here, rotation), "{name} rotated {rotation}");
    }
}

/// Rows and columns: one of each, odd ones, less than a warp's packs, less than a block's of 1024 threads, more than one round of them.
const SHAPES: [(usize, usize); 10] =
    [(1, 1), (5, 3), (3, 8), (4, 64), (9, 100), (3, 128), (2, 2056), (3, 1025), (2, 2600), (2, 8320)];

#[test]
fn forward_has_the_bits_of_the_cpu() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (rows, cols) in SHAPES {
            for dtype in DTYPES {
                let x = random(&mut rng, device, dtype, &[rows, cols], 1.0);
                check(&what(&[&"quantize", &rows, &"x", &cols, &dtype]), &x);
            }
        }
    });
}

/// Blocks of 256 threads, and up to several rounds of them over a row; very small and very large numbers.
#[test]
fn many_rows_have_the_bits_of_the_cpu() {
    on_each(TINY, |device| {
        let mut rng = Rng(4);
        for (rows, cols) in SHAPES.into_iter().chain([(3, 1032), (2, 2064)]) {
            for (dtype, scale) in
                [(DType::F32, 1e-30), (DType::F32, 1e30), (DType::Bf16, 1e-30), (DType::Bf16, 1e30)]
            {
                let x = random(&mut rng, device, dtype, &[rows, cols], scale);
                check(&what(&[&"quantize", &rows, &"x", &cols, &dtype, &scale]), &x);
            }
        }
    });
}

#[test]
fn the_largest_may_be_anywhere() {
    on_each_device(|device| {
        for (cols, dtype) in [(40, DType::F32), (8200, DType::Bf16), (259, DType::Bf16), (4132, DType::F32)] {
            for place in [0, 1, 7, 31, 32, cols / 2, cols - 9, cols - 1].into_iter().filter(|&p| p < cols) {
                let mut data = vec![0.25; cols];
                data[place] = -3.0;
                let x = Tensor::from_vec(&[1, cols], data).unwrap().to_dtype(dtype).unwrap();
                check(&what(&[&"quantize", &cols, &dtype, &place]), &x.to_device(device).unwrap());
            }
        }
    });
}

#[test]
fn rows_of_zeros_and_without_bounds_and_ties() {
    on_each_device(|device| {
        let (big, tiny) = (f32::MAX, f32::MIN_POSITIVE / 8.0);
        let rows = [
            [0.0, -0.0, 0.0],
            [tiny, -tiny, 0.0],
            [0.99e-36, 0.0, 0.0],
            [1e-36, 0.0, -0.5e-36],
            [1.01e-36, 0.5e-36, 0.0],
            [big, -big, 0.0],
            [f32::INFINITY, 1.0, -1.0],
            [1.0, f32::NAN, 2.0],
            [f32::NEG_INFINITY, f32::NAN, 0.0],
            [127.0, 0.5, -1.5],
            [127.0, 2.5, -0.5],
        ];
        for dtype in DTYPES {
            let x = Tensor::from_vec(&[rows.len(), 3], rows.concat()).unwrap().to_dtype(dtype).unwrap();
            check("quantize", &x.to_device(device).unwrap());
        }
        let x = random(&mut Rng(2), device, DType::F32, &[3, 0], 1.0);
        assert_eq!(quantised(&x, 1).1, [0, 0, 0]);
    });
}

#[test]
fn other_types_and_devices_are_refused() {
    on_each_device(|device| {
        let x = random(&mut Rng(3), device, DType::F32, &[2, 3], 1.0);
        let (mut q, mut scale) = (x.like_i8(&[2, 3]).unwrap(), x.like_f32(&[2]).unwrap());
        assert_op_error(forward(&mut x.clone(), &mut scale, &x, 1), "quantize", "q in i8");
        let small = q.clone();
        assert_op_error(forward(&mut q, &mut scale, &small, 1), "quantize", "all f32");
        let mut narrow = random(&mut Rng(3), device, DType::Bf16, &[2], 1.0);
        assert_op_error(forward(&mut q, &mut narrow, &x, 1), "quantize", "scale in f32");
        assert_op_error(forward(&mut q, &mut scale, &x, 2), "quantize", "a rotation");
        let mut off = Tensor::from_i8(&[2, 3], vec![0; 6]).unwrap();
        assert_op_error(forward(&mut off, &mut scale, &x, 1), "tensor", "host-executed");
    });
}
