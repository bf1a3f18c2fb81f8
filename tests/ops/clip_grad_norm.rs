use mpa::ops::clip_grad_norm::{clip, norm};
use mpa::tensor::Tensor;

use crate::common::{
    F32, Rng, Tolerance, assert_close, assert_op_error, assert_same_on_any_pool, to_f64, values,
};

const SHAPES: [&[usize]; 4] = [&[0], &[1], &[7, 33], &[40_001]];

fn gradients(scale: f32) -> Vec<Tensor> {
    let mut rng = Rng(1);
    SHAPES.iter().map(|shape| rng.tensor(shape, scale)).collect()
}

fn reference(grads: &[Tensor]) -> f64 {
    grads.iter().flat_map(to_f64).map(|g| g * g).sum::<f64>().sqrt()
}

#[test]
fn the_norm_matches_f64() {
    for scale in [1e-30, 1.0, 1e4, 1e30] {
        let grads = gradients(scale);
        let want = reference(&grads);
        let got = norm(&grads.iter().collect::<Vec<_>>()).unwrap();
        assert!((got - want).abs() <= 1e-12 * want, "{got} instead of {want}");
    }
    assert_eq!(norm(&[]).unwrap(), 0.0);
}

#[test]
fn what_exceeds_is_scaled() {
    for scale in [1.0, 1e4, 1e30] {
        let before = gradients(scale);
        let mut after = before.clone();
        let got = clip(&mut after.iter_mut().collect::<Vec<_>>(), 0.5).unwrap();
        assert!((got - reference(&before)).abs() <= 1e-12 * got);
        for (after, before) in after.iter().zip(&before) {
            let want: Vec<f64> = to_f64(before).iter().map(|g| g * (0.5 / (got + 1e-6))).collect();
            assert_close("clipped", values(after), &want, Tolerance { abs: 1e-30, ..F32 });
        }
        assert!((reference(&after) - 0.5).abs() < 1e-6);
    }
}

#[test]
fn what_does_not_exceed_stays() {
    for (scale, max_norm) in [(1e-30, 1.0), (1.0, 1e6), (1.0, f32::INFINITY)] {
        let before = gradients(scale);
        let mut after = before.clone();
        clip(&mut after.iter_mut().collect::<Vec<_>>(), max_norm).unwrap();
        for (after, before) in after.iter().zip(&before) {
            assert_eq!(values(after), values(before));
        }
    }
}

#[test]
fn a_norm_that_is_not_finite_is_an_error_and_changes_nothing() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut good = Tensor::from_vec(&[2], vec![3.0, 4.0]).unwrap();
        let mut spoilt = Tensor::from_vec(&[2], vec![1.0, bad]).unwrap();
        assert_op_error(clip(&mut [&mut good, &mut spoilt], 1.0), "clip_grad_norm", "norm");
        assert_eq!(values(&good), [3.0, 4.0]);
    }
}

#[test]
fn a_limit_that_makes_no_sense_is_refused() {
    let mut grad = Tensor::from_vec(&[2], vec![3.0, 4.0]).unwrap();
    for max_norm in [-1.0, f32::NAN] {
        assert_op_error(clip(&mut [&mut grad], max_norm), "clip_grad_norm", "max_norm");
    }
}

#[test]
fn same_bits_on_any_pool() {
    let grads = gradients(1.0);
    assert_same_on_any_pool("clip_grad_norm", || {
        let mut grads = grads.clone();
        clip(&mut grads.iter_mut().collect::<Vec<_>>(), 0.5).unwrap();
        grads.iter().flat_map(|g| values(g).to_vec()).collect()
    });
}
