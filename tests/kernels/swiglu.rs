use mpa::ops::swiglu::{backward, forward};
use mpa::tensor::{DType, Tensor};

use crate::common::{Rng, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

/// Lengths: one, around a pack of either type, around a block's share of either type, several blocks with a tail.
const LENGTHS: [usize; 10] = [1, 3, 4, 7, 8, 9, 1024, 1027, 2049, 6145];

fn reference(gate: &Tensor, up: &Tensor) -> Vec<f64> {
    to_f64(gate).iter().zip(to_f64(up)).map(|(z, up)| z / (1.0 + (-z).exp()) * up).collect()
}

#[test]
fn forward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for n in LENGTHS {
            for dtype in DTYPES {
                for scale in [1e-3, 8.0, 1e4] {
                    let gate = random(&mut rng, device, dtype, &[n], scale);
                    let up = random(&mut rng, device, dtype, &[n], 3.0);
                    let mut out = output(&gate, &[n]);
                    forward(&mut out, &gate, &up).unwrap();
                    let name = what(&[&"swiglu", &n, &dtype, &scale]);
                    assert_close(&name, &values(&out), &reference(&gate, &up), rounded_sum(dtype, 1, 3.0));
                }
            }
        }
    });
}

#[test]
fn ends_do_not_overflow() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let on = |x: Vec<f32>| {
                let here = Tensor::from_vec(&[x.len()], x).unwrap();
                here.to_dtype(dtype).unwrap().to_device(device).unwrap()
            };
            let gate = on(vec![-3e38, -1e4, -100.0, -88.5, -0.0, 0.0, 88.5, 1e4, 3e38]);
            let up = on(vec![1.0; 9]);
            let mut out = output(&gate, &[9]);
            forward(&mut out, &gate, &up).unwrap();
            assert_close("swiglu", &values(&out), &reference(&gate, &up), rounded_sum(dtype, 1, 1.0));
        }
    });
}

/// dgate and dup.
fn reference_backward(dout: &Tensor, gate: &Tensor, up: &Tensor) -> [Vec<f64>; 2] {
    let slope = |z: f64| {
        // s (1 - s), which is even; e^-z may be infinite.
        let (s, e) = (1.0 / (1.0 + (-z).exp()), (-z.abs()).exp());
        s + z * e / ((1.0 + e) * (1.0 + e))
    };
    let all = || to_f64(dout).into_iter().zip(to_f64(gate)).zip(to_f64(up));
    let dup = all().map(|((d, z), _)| d * z / (1.0 + (-z).exp()));
    [all().map(|((d, z), up)| d * up * slope(z)).collect(), dup.collect()]
}

#[test]
fn backward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for n in LENGTHS {
            for dtype in DTYPES {
                for scale in [1e-3, 8.0, 1e4] {
                    let [gate, up, dout] =
                        [scale, 3.0, 2.0].map(|scale| random(&mut rng, device, dtype, &[n], scale));
                    let (mut dgate, mut dup) = (output(&gate, &[n]), output(&gate, &[n]));
                    backward(&mut dgate, &mut dup, &dout, &gate, &up).unwrap();
                    let name = what(&[&"swiglu backward", &n, &dtype, &scale]);
                    let [dgate_want, dup_want] = reference_backward(&dout, &gate, &up);
                    // dgate is 0 near gate = -1.28, between terms of size 2.
                    assert_close(&name, &values(&dgate), &dgate_want, rounded_sum(dtype, 1, 6.0));
                    assert_close(&name, &values(&dup), &dup_want, rounded_sum(dtype, 1, 2.0));
                }
            }
        }
    });
}

#[test]
fn ends_of_the_gradients_do_not_overflow() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let on = |x: Vec<f32>| {
                let here = Tensor::from_vec(&[x.len()], x).unwrap();
                here.to_dtype(dtype).unwrap().to_device(device).unwrap()
            };
            let gate = on(vec![-3e38, -1e4, -100.0, -88.5, -0.0, 0.0, 88.5, 1e4, 3e38]);
            let (up, dout) = (on(vec![2.0; 9]), on(vec![-1.0; 9]));
            let (mut dgate, mut dup) = (output(&gate, &[9]), output(&gate, &[9]));
            backward(&mut dgate, &mut dup, &dout, &gate, &up).unwrap();
            let [dgate_want, dup_want] = reference_backward(&dout, &gate, &up);
            assert_close("dgate", &values(&dgate), &dgate_want, rounded_sum(dtype, 1, 1.0));
            assert_close("dup", &values(&dup), &dup_want, rounded_sum(dtype, 1, 1.0));
            let nan = on(vec![f32::NAN; 9]);
            backward(&mut dgate, &mut dup, &dout, &nan, &up).unwrap();
            assert!(values(&dgate).iter().chain(&values(&dup)).all(|d| d.is_nan()));
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let x = random(&mut rng, device, DType::F32, &[4], 1.0);
        let narrow = random(&mut rng, device, DType::Bf16, &[4], 1.0);
        let mut out = output(&x, &[4]);
        assert_op_error(forward(&mut out, &x, &narrow), "swiglu", "all f32 or all bf16");
        assert_op_error(forward(&mut out, &narrow, &x), "swiglu", "all f32 or all bf16");
        let mut dup = output(&narrow, &[4]);
        assert_op_error(backward(&mut out, &mut dup, &x, &x, &x), "swiglu", "all f32 or all bf16");
        assert_op_error(forward(&mut out, &x, &rng.tensor(&[4], 1.0)), "tensor", "host-executed");
    });
}
