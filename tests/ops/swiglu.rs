use mpa::ops::swiglu::{backward, forward};
use mpa::tensor::Tensor;

use crate::common::{
    F32, Rng, assert_close, assert_op_error, assert_same_on_any_pool, finite_differences, poisoned, to_f64,
    values,
};

fn swiglu(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

#[test]
fn forward_matches_f64() {
    let mut rng = Rng(1);
    for (shape, scale) in
        [(&[0][..], 1.0), (&[1], 1.0), (&[3, 7], 1e-18), (&[5, 13], 10.0), (&[2, 31], 1e4), (&[40_001], 4.0)]
    {
        let (gate, up) = (rng.tensor(shape, scale), rng.tensor(shape, scale));
        let mut out = poisoned(shape);
        forward(&mut out, &gate, &up).unwrap();
        let want: Vec<f64> = to_f64(&gate).iter().zip(to_f64(&up)).map(|(&g, u)| swiglu(g, u)).collect();
        assert_close("swiglu", values(&out), &want, F32);
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    for (n, scale) in [(0, 1.0), (1, 1.0), (37, 1e-30), (301, 6.0), (53, 1e4)] {
        let (gate, up, dout) = (rng.tensor(&[n], scale), rng.tensor(&[n], 2.0), rng.tensor(&[n], 1.0));
        let (mut dgate, mut dup) = (poisoned(&[n]), poisoned(&[n]));
        backward(&mut dgate, &mut dup, &dout, &gate, &up).unwrap();
        let (mut want_dgate, mut want_dup) = (Vec::new(), Vec::new());
        for ((g, u), d) in to_f64(&gate).into_iter().zip(to_f64(&up)).zip(to_f64(&dout)) {
            let slopes = finite_differences(&[g, u], |x| d * swiglu(x[0], x[1]));
            want_dgate.push(slopes[0]);
            want_dup.push(slopes[1]);
        }
        assert_close("dgate", values(&dgate), &want_dgate, F32);
        assert_close("dup", values(&dup), &want_dup, F32);
    }
}

#[test]
fn saturates_without_overflow() {
    let gate = Tensor::from_vec(&[4], vec![1e30, -1e30, f32::MAX, f32::MIN]).unwrap();
    let ones = Tensor::from_vec(&[4], vec![1.0; 4]).unwrap();
    let (mut out, mut dgate, mut dup) = (poisoned(&[4]), poisoned(&[4]), poisoned(&[4]));
    forward(&mut out, &gate, &ones).unwrap();
    backward(&mut dgate, &mut dup, &ones, &gate, &ones).unwrap();
    assert_eq!(values(&out), [1e30, 0.0, f32::MAX, 0.0]);
    assert_eq!(values(&dgate), [1.0, 0.0, 1.0, 0.0]);
    assert_eq!(values(&dup), values(&out));
}

#[test]
fn other_shapes_are_refused() {
    let (a, b) = (Tensor::zeros(&[2, 3]), Tensor::zeros(&[6]));
    assert_op_error(forward(&mut a.clone(), &b, &b), "swiglu", "out [6]");
    assert_op_error(forward(&mut b.clone(), &b, &a), "swiglu", "up [6]");
    assert_op_error(backward(&mut b.clone(), &mut a.clone(), &b, &b, &b), "swiglu", "dup [6]");
    assert_op_error(backward(&mut b.clone(), &mut b.clone(), &a, &b, &b), "swiglu", "dout [6]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(3);
    let [gate, up, dout] = [4.0, 1.0, 1.0].map(|scale| rng.tensor(&[50_001], scale));
    assert_same_on_any_pool("swiglu", || {
        let [mut out, mut dgate, mut dup] = [0; 3].map(|_| poisoned(&[50_001]));
        forward(&mut out, &gate, &up).unwrap();
        backward(&mut dgate, &mut dup, &dout, &gate, &up).unwrap();
        [values(&out), values(&dgate), values(&dup)].concat()
    });
}
