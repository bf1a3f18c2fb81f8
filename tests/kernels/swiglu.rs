use mpa::ops::swiglu::forward;
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

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let x = random(&mut rng, device, DType::F32, &[4], 1.0);
        let narrow = random(&mut rng, device, DType::Bf16, &[4], 1.0);
        let mut out = output(&x, &[4]);
        assert_op_error(forward(&mut out, &x, &narrow), "swiglu", "all f32 or all bf16");
        assert_op_error(forward(&mut out, &narrow, &x), "swiglu", "all f32 or all bf16");
        assert_op_error(forward(&mut out, &x, &rng.tensor(&[4], 1.0)), "tensor", "host-executed");
    });
}
