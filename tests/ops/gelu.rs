use mpa::ops::gelu::{Kind, backward, forward};
use mpa::tensor::Tensor;

use crate::common::{
    F32, Rng, assert_close, assert_op_error, assert_same_on_any_pool, dot, finite_differences, gelu,
    poisoned, to_f64, values,
};

fn reference(x: &[f64], kind: Kind) -> Vec<f64> {
    x.iter().map(|&x| gelu(x, kind)).collect()
}

#[test]
fn forward_matches_f64() {
    let mut rng = Rng(1);
    for (shape, scale) in
        [(&[0][..], 1.0), (&[1], 1.0), (&[3, 7], 1e-30), (&[5, 13], 10.0), (&[2, 31], 1e4), (&[40_001], 4.0)]
    {
        let x = rng.tensor(shape, scale);
        for kind in Kind::ALL {
            let mut out = poisoned(shape);
            forward(&mut out, &x, kind).unwrap();
            assert_close(&format!("gelu {kind:?}"), values(&out), &reference(&to_f64(&x), kind), F32);
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    for (n, scale) in [(0, 1.0), (1, 1.0), (37, 1e-30), (301, 6.0), (53, 1e4)] {
        let (x, dy) = (rng.tensor(&[n], scale), rng.tensor(&[n], 1.0));
        for kind in Kind::ALL {
            let mut dx = poisoned(&[n]);
            backward(&mut dx, &dy, &x, kind).unwrap();
            // Element by element: the differences of one whole sum would drown in its other terms.
            let want: Vec<f64> = to_f64(&x)
                .iter()
                .zip(to_f64(&dy))
                .map(|(&x, dy)| finite_differences(&[x], |x| dot(&reference(x, kind), &[dy]))[0])
                .collect();
            assert_close(&format!("gelu {kind:?} backward"), values(&dx), &want, F32);
        }
    }
}

#[test]
fn saturates_without_overflow() {
    let x = Tensor::from_vec(&[4], vec![1e30, -1e30, f32::MAX, f32::MIN]).unwrap();
    let ones = Tensor::from_vec(&[4], vec![1.0; 4]).unwrap();
    for kind in Kind::ALL {
        let (mut out, mut dx) = (poisoned(&[4]), poisoned(&[4]));
        forward(&mut out, &x, kind).unwrap();
        backward(&mut dx, &ones, &x, kind).unwrap();
        assert_eq!(values(&out), [1e30, 0.0, f32::MAX, 0.0], "{kind:?}");
        assert_eq!(values(&dx), [1.0, 0.0, 1.0, 0.0], "{kind:?}");
    }
}

#[test]
fn nan_is_passed_on() {
    for kind in Kind::ALL {
        let (mut out, mut dx) = (Tensor::zeros(&[1]), Tensor::zeros(&[1]));
        forward(&mut out, &poisoned(&[1]), kind).unwrap();
        backward(&mut dx, &Tensor::from_vec(&[1], vec![1.0]).unwrap(), &poisoned(&[1]), kind).unwrap();
        assert!(values(&out)[0].is_nan() && values(&dx)[0].is_nan(), "{kind:?}");
    }
}

#[test]
fn other_shapes_are_refused() {
    let (a, b) = (Tensor::zeros(&[2, 3]), Tensor::zeros(&[6]));
    assert_op_error(forward(&mut a.clone(), &b, Kind::Tanh), "gelu", "out [6]");
    assert_op_error(backward(&mut a.clone(), &a, &b, Kind::Tanh), "gelu", "dx [6]");
    assert_op_error(backward(&mut b.clone(), &a, &b, Kind::Quick), "gelu", "dy [6]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(3);
    let (x, dy) = (rng.tensor(&[50_001], 4.0), rng.tensor(&[50_001], 1.0));
    assert_same_on_any_pool("gelu", || {
        let one = |kind| {
            let (mut out, mut dx) = (poisoned(&[50_001]), poisoned(&[50_001]));
            forward(&mut out, &x, kind).unwrap();
            backward(&mut dx, &dy, &x, kind).unwrap();
            [values(&out), values(&dx)].concat()
        };
        Kind::ALL.map(one).concat()
    });
}
