use mpa::ops::gelu::{backward, forward};
use mpa::tensor::Tensor;

use crate::common::{
    F32, Rng, assert_close, assert_op_error, assert_same_on_any_pool, dot, finite_differences, poisoned,
    to_f64, values,
};

fn reference(x: &[f64]) -> Vec<f64> {
    let k = (2.0 / std::f64::consts::PI).sqrt();
    x.iter().map(|x| 0.5 * x * (1.0 + (k * (x + 0.044715 * x.powi(3))).tanh())).collect()
}

#[test]
fn forward_matches_f64() {
    let mut rng = Rng(1);
    for (shape, scale) in
        [(&[0][..], 1.0), (&[1], 1.0), (&[3, 7], 1e-30), (&[5, 13], 10.0), (&[2, 31], 1e4), (&[40_001], 4.0)]
    {
        let x = rng.tensor(shape, scale);
        let mut out = poisoned(shape);
        forward(&mut out, &x).unwrap();
        assert_close("gelu", values(&out), &reference(&to_f64(&x)), F32);
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    for (n, scale) in [(0, 1.0), (1, 1.0), (37, 1e-30), (301, 6.0), (53, 1e4)] {
        let (x, dy) = (rng.tensor(&[n], scale), rng.tensor(&[n], 1.0));
        let mut dx = poisoned(&[n]);
        backward(&mut dx, &dy, &x).unwrap();
        // Element by element: the differences of one whole sum would drown in its other terms.
        let want: Vec<f64> = to_f64(&x)
            .iter()
            .zip(to_f64(&dy))
            .map(|(&x, dy)| finite_differences(&[x], |x| dot(&reference(x), &[dy]))[0])
            .collect();
        assert_close("gelu backward", values(&dx), &want, F32);
    }
}

#[test]
fn saturates_without_overflow() {
    let x = Tensor::from_vec(&[4], vec![1e30, -1e30, f32::MAX, f32::MIN]).unwrap();
    let ones = Tensor::from_vec(&[4], vec![1.0; 4]).unwrap();
    let (mut out, mut dx) = (poisoned(&[4]), poisoned(&[4]));
    forward(&mut out, &x).unwrap();
    backward(&mut dx, &ones, &x).unwrap();
    assert_eq!(values(&out), [1e30, 0.0, f32::MAX, 0.0]);
    assert_eq!(values(&dx), [1.0, 0.0, 1.0, 0.0]);
}

#[test]
fn nan_is_passed_on() {
    let mut out = Tensor::zeros(&[1]);
    forward(&mut out, &poisoned(&[1])).unwrap();
    assert!(values(&out)[0].is_nan());
}

#[test]
fn other_shapes_are_refused() {
    let (a, b) = (Tensor::zeros(&[2, 3]), Tensor::zeros(&[6]));
    assert_op_error(forward(&mut a.clone(), &b), "gelu", "out [6]");
    assert_op_error(backward(&mut a.clone(), &a, &b), "gelu", "dx [6]");
    assert_op_error(backward(&mut b.clone(), &a, &b), "gelu", "dy [6]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(3);
    let (x, dy) = (rng.tensor(&[50_001], 4.0), rng.tensor(&[50_001], 1.0));
    assert_same_on_any_pool("gelu", || {
        let (mut out, mut dx) = (poisoned(&[50_001]), poisoned(&[50_001]));
        forward(&mut out, &x).unwrap();
        backward(&mut dx, &dy, &x).unwrap();
        [values(&out), values(&dx)].concat()
    });
}
