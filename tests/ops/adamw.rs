use mpa::ops::adamw::{Hyper, step};
use mpa::tensor::Tensor;

use crate::common::{
    F32, Rng, Tolerance, assert_close, assert_op_error, assert_same_on_any_pool, to_f64, values,
};

const HYPER: Hyper = Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// One step in f64, as the head of src/ops/adamw.rs has it.
fn reference(w: &mut [f64], m: &mut [f64], v: &mut [f64], grad: &[f64], hyper: Hyper, t: i32) {
    let [lr, b1, b2, eps, decay] =
        [hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay].map(f64::from);
    for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(grad) {
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        *w -= lr * decay * *w;
        *w -= lr / (1.0 - b1.powi(t)) * *m / (v.sqrt() / (1.0 - b2.powi(t)).sqrt() + eps);
    }
}

fn check_steps(n: usize, steps: i32, grad_scale: f32, hyper: Hyper) {
    let mut rng = Rng(1);
    let mut w = rng.tensor(&[n], 1.0);
    let (mut m, mut v) = (Tensor::zeros(&[n]), Tensor::zeros(&[n]));
    let [mut w64, mut m64, mut v64] = [&w, &m, &v].map(to_f64);
    for t in 1..=steps {
        let grad = rng.tensor(&[n], grad_scale);
        step(&mut w, &mut m, &mut v, &grad, hyper, t as u64).unwrap();
        reference(&mut w64, &mut m64, &mut v64, &to_f64(&grad), hyper, t);
    }
    // Moments scale with the gradients; what they may be off by does too, down to the least normal number.
    let scale = f64::from(grad_scale);
    let least = f64::from(f32::MIN_POSITIVE);
    assert_close("w", values(&w), &w64, F32);
    assert_close("m", values(&m), &m64, Tolerance { abs: (scale * F32.abs).max(least), ..F32 });
    // 20 steps of three roundings each, all of positive terms.
    assert_close("v", values(&v), &v64, Tolerance { abs: least, rel: 60.0 * f64::from(f32::EPSILON) / 2.0 });
}

#[test]
fn twenty_steps_match_f64() {
    for n in [0, 1, 37, 16 * 1024 + 3] {
        check_steps(n, 20, 1.0, HYPER);
    }
    check_steps(101, 20, 1.0, Hyper { weight_decay: 0.0, beta1: 0.5, beta2: 0.95, eps: 1e-3, ..HYPER });
}

#[test]
fn extreme_gradients_match_f64() {
    for scale in [1e-30, 1e-12, 1e-6, 1e4, 1e15] {
        check_steps(101, 20, scale, HYPER);
    }
}

#[test]
fn gradients_whose_square_overflows_move_nothing() {
    let mut w = Tensor::from_vec(&[1], vec![0.5]).unwrap();
    let (mut m, mut v) = (Tensor::zeros(&[1]), Tensor::zeros(&[1]));
    let grad = Tensor::from_vec(&[1], vec![1e30]).unwrap();
    step(&mut w, &mut m, &mut v, &grad, Hyper { weight_decay: 0.0, ..HYPER }, 1).unwrap();
    assert_eq!(values(&w), [0.5]);
}

#[test]
fn the_first_step_is_lr_against_the_sign() {
    let mut w = Tensor::zeros(&[3]);
    let (mut m, mut v) = (Tensor::zeros(&[3]), Tensor::zeros(&[3]));
    let grad = Tensor::from_vec(&[3], vec![2.0, -300.0, 0.0]).unwrap();
    step(&mut w, &mut m, &mut v, &grad, HYPER, 1).unwrap();
    assert_close("w", values(&w), &[-0.01, 0.01, 0.0], F32);
}

#[test]
fn bad_arguments_are_refused() {
    let (a, b) = (Tensor::zeros(&[3]), Tensor::zeros(&[1, 3]));
    let run = |m: &Tensor, v: &Tensor, grad, t| {
        step(&mut a.clone(), &mut m.clone(), &mut v.clone(), grad, HYPER, t)
    };
    assert_op_error(run(&a, &a, &a, 0), "adamw", "step 0");
    assert_op_error(run(&b, &a, &a, 1), "adamw", "m [3]");
    assert_op_error(run(&a, &b, &a, 1), "adamw", "v [3]");
    assert_op_error(run(&a, &a, &b, 1), "adamw", "grad [3]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(2);
    let [w, m, grad] = [0; 3].map(|_| rng.tensor(&[50_001], 1.0));
    assert_same_on_any_pool("adamw", || {
        let (mut w, mut m, mut v) = (w.clone(), m.clone(), Tensor::zeros(&[50_001]));
        step(&mut w, &mut m, &mut v, &grad, HYPER, 3).unwrap();
        [&w, &m, &v].map(values).concat()
    });
}
