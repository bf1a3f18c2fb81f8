use mpa::ops::pixel_shuffle::{backward, forward};
use mpa::tensor::Tensor;

use crate::common::{Rng, assert_op_error, assert_same_on_any_pool, poisoned, values};

/// (N, grid, C, factor)
const SHAPES: [(usize, usize, usize, usize); 8] = [
    (0, 4, 3, 2),
    (1, 1, 1, 1),
    (1, 2, 1, 2),
    (2, 6, 5, 3),
    (3, 8, 7, 4),
    (1, 8, 64, 2),
    (2, 32, 33, 4),
    (2, 4, 0, 2),
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
    let mut rng = Rng(1);
    for (n, grid, c, s) in SHAPES {
        let x = rng.tensor(&[n, grid * grid, c], 1e4);
        let mut out = poisoned(&[n, grid * grid / (s * s), c * s * s]);
        forward(&mut out, &x, s).unwrap();
        assert_eq!(values(&out), reference(values(&x), n, grid, c, s), "{n} {grid} {c} {s}");
    }
}

#[test]
fn backward_is_the_inverse() {
    let mut rng = Rng(2);
    for (n, grid, c, s) in SHAPES {
        let x = rng.tensor(&[n, grid * grid, c], 1.0);
        let mut shuffled = poisoned(&[n, grid * grid / (s * s), c * s * s]);
        forward(&mut shuffled, &x, s).unwrap();
        let mut back = poisoned(x.shape());
        backward(&mut back, &shuffled, s).unwrap();
        assert_eq!(values(&back), values(&x), "{n} {grid} {c} {s}");
    }
}

#[test]
fn other_shapes_are_refused() {
    let z = |shape: &[usize]| Tensor::zeros(shape);
    assert_op_error(forward(&mut z(&[1, 2, 8]), &z(&[1, 8, 2]), 2), "pixel_shuffle", "square");
    assert_op_error(forward(&mut z(&[1, 1, 18]), &z(&[1, 9, 2]), 2), "pixel_shuffle", "root 2 divides");
    assert_op_error(forward(&mut z(&[1, 1, 18]), &z(&[1, 9, 2]), 0), "pixel_shuffle", "root 0 divides");
    assert_op_error(forward(&mut z(&[1, 1, 9]), &z(&[1, 9, 2]), 3), "pixel_shuffle", "[1, 1, 18]");
    assert_op_error(backward(&mut z(&[9, 2]), &z(&[1, 1, 18]), 3), "pixel_shuffle", "[9, 2]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(3);
    let x = rng.tensor(&[5, 64, 100], 1.0);
    assert_same_on_any_pool("pixel_shuffle", || {
        let (mut out, mut back) = (poisoned(&[5, 16, 400]), poisoned(&[5, 64, 100]));
        forward(&mut out, &x, 2).unwrap();
        backward(&mut back, &out, 2).unwrap();
        [values(&out), values(&back)].concat()
    });
}
