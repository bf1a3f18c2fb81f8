//! Copies are exact.
use mpa::ops::pixel_shuffle::{backward, forward};
use mpa::tensor::Tensor;

use crate::common::{Rng, assert_op_error};
use crate::device::{DTYPES, on_each_device, output, random, values, what};

/// N, grid, C, factor: one of each, odd ones, runs that packs of one type or the other do not fit, runs of packs whose C fits none, less than a warp's packs
/// and more than one round of them, runs that do not fill a block.
const SHAPES: [(usize, usize, usize, usize); 9] = [
    (0, 4, 3, 2),
    (1, 1, 1, 1),
    (1, 2, 1, 2),
    (2, 6, 5, 3),
    (3, 8, 7, 4),
    (2, 4, 2, 2),
    (2, 8, 2, 4),
    (1, 8, 64, 2),
    (1, 4, 300, 2),
];

/// [N, h, w, C] with its middle axes exchanged.
fn transpose(x: &[f32], n: usize, h: usize, w: usize, c: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for i in 0..n {
        for k in 0..w {
            for j in 0..h {
                let at = ((i * h + j) * w + k) * c;
                out.extend_from_slice(&x[at..at + c]);
            }
        }
    }
    out
}

/// As the model is defined: view, exchange axes, view, exchange axes back.
fn reference(x: &[f32], n: usize, grid: usize, c: usize, s: usize) -> Vec<f32> {
    let x = transpose(x, n, grid, grid / s, c * s);
    transpose(&x, n, grid / s, grid / s, c * s * s)
}

#[test]
fn forward_matches_the_definition() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (n, grid, c, s) in SHAPES {
            for dtype in DTYPES {
                let x = random(&mut rng, device, dtype, &[n, grid * grid, c], 1e4);
                let mut out = output(&x, &[n, grid * grid / (s * s), c * s * s]);
                forward(&mut out, &x, s).unwrap();
                let name = what(&[&"pixel_shuffle", &n, &grid, &c, &s, &dtype]);
                assert_eq!(values(&out), reference(&values(&x), n, grid, c, s), "{name}");
            }
        }
    });
}

#[test]
fn backward_undoes_it() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        for (n, grid, c, s) in SHAPES {
            for dtype in DTYPES {
                let x = random(&mut rng, device, dtype, &[n, grid * grid, c], 1e4);
                let dy = reference(&values(&x), n, grid, c, s);
                let shape = [n, grid * grid / (s * s), c * s * s];
                let dy = Tensor::from_vec(&shape, dy).unwrap().to_dtype(dtype).unwrap();
                let mut dx = output(&x, x.shape());
                backward(&mut dx, &dy.to_device(device).unwrap(), s).unwrap();
                assert_eq!(
                    values(&dx),
                    values(&x),
                    "{}",
                    what(&[&"pixel_shuffle", &n, &grid, &c, &s, &dtype])
                );
            }
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        let [wide, narrow] = DTYPES.map(|dtype| random(&mut rng, device, dtype, &[1, 4, 3], 1.0));
        let mut out = output(&wide, &[1, 1, 12]);
        assert_op_error(forward(&mut out, &narrow, 2), "pixel_shuffle", "all f32 or all bf16");
        let back = backward(&mut output(&wide, &[1, 4, 3]), &output(&narrow, &[1, 1, 12]), 2);
        assert_op_error(back, "pixel_shuffle", "all f32 or all bf16");
        assert_op_error(forward(&mut rng.tensor(&[1, 1, 12], 1.0), &wide, 2), "tensor", "host-executed");
    });
}
