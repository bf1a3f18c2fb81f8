use mpa::ops::gelu::{Kind, backward, forward};
use mpa::tensor::{DType, Tensor};

use crate::common::{Rng, assert_close, assert_op_error, gelu, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

/// Lengths: one, around a pack of either type, around a block's share of either type, several blocks with a tail.
const LENGTHS: [usize; 10] = [1, 3, 4, 7, 8, 9, 1024, 1027, 2049, 6145];

fn reference(x: &Tensor, kind: Kind) -> Vec<f64> {
    to_f64(x).into_iter().map(|x| gelu(x, kind)).collect()
}

#[test]
fn forward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for n in LENGTHS {
            for dtype in DTYPES {
                for scale in [1e-3, 1.0, 6.0, 1e4] {
                    let x = random(&mut rng, device, dtype, &[n], scale);
                    for kind in Kind::ALL {
                        let mut out = output(&x, &[n]);
                        forward(&mut out, &x, kind).unwrap();
                        let name = what(&[&"gelu", &format!("{kind:?}"), &n, &dtype, &scale]);
                        assert_close(&name, &values(&out), &reference(&x, kind), rounded_sum(dtype, 1, 1.0));
                    }
                }
            }
        }
    });
}

#[test]
fn ends_do_not_overflow() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let x = vec![-3e38, -1e20, -1e13, -1e4, -40.0, -5.0, -0.0, 0.0, 5.0, 40.0, 1e4, 1e13, 1e20, 3e38];
            let x = Tensor::from_vec(&[x.len()], x).unwrap();
            let x = x.to_dtype(dtype).unwrap().to_device(device).unwrap();
            for kind in Kind::ALL {
                let mut out = output(&x, x.shape());
                forward(&mut out, &x, kind).unwrap();
                assert_close("gelu", &values(&out), &reference(&x, kind), rounded_sum(dtype, 1, 1.0));
            }
        }
    });
}

/// By central differences, which are 1e-9 off.
fn reference_backward(dy: &Tensor, x: &Tensor, kind: Kind) -> Vec<f64> {
    let slope = |x: f64| {
        let h = 1e-5 * x.abs().max(1.0);
        (gelu(x + h, kind) - gelu(x - h, kind)) / (2.0 * h)
    };
    to_f64(dy).iter().zip(to_f64(x)).map(|(dy, x)| dy * slope(x)).collect()
}

#[test]
fn backward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for n in LENGTHS {
            for dtype in DTYPES {
                for scale in [1e-3, 1.0, 6.0, 1e4] {
                    let [x, dy] = [scale, 2.0].map(|scale| random(&mut rng, device, dtype, &[n], scale));
                    for kind in Kind::ALL {
                        let mut dx = output(&x, &[n]);
                        backward(&mut dx, &dy, &x, kind).unwrap();
                        let name = what(&[&"gelu backward", &format!("{kind:?}"), &n, &dtype, &scale]);
                        // 0 near x = -0.75, between terms of size 2.
                        let want = reference_backward(&dy, &x, kind);
                        assert_close(&name, &values(&dx), &want, rounded_sum(dtype, 1, 2.0));
                    }
                }
            }
        }
    });
}

#[test]
fn ends_of_the_gradient_do_not_overflow() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let on = |x: Vec<f32>| {
                let here = Tensor::from_vec(&[x.len()], x).unwrap();
                here.to_dtype(dtype).unwrap().to_device(device).unwrap()
            };
            let x = vec![-3e38, -1e20, -1e13, -1e4, -40.0, -5.0, -0.0, 0.0, 5.0, 40.0, 1e4, 1e13, 1e20, 3e38];
            let (x, dy) = (on(x), on(vec![-1.5; 14]));
            for kind in Kind::ALL {
                let mut dx = output(&x, x.shape());
                backward(&mut dx, &dy, &x, kind).unwrap();
                let want = reference_backward(&dy, &x, kind);
                assert_close("gelu", &values(&dx), &want, rounded_sum(dtype, 1, 1.0));
                backward(&mut dx, &dy, &on(vec![f32::NAN; 14]), kind).unwrap();
                assert!(values(&dx).iter().all(|d| d.is_nan()), "{kind:?}");
            }
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let x = random(&mut rng, device, DType::F32, &[4], 1.0);
        let narrow = random(&mut rng, device, DType::Bf16, &[4], 1.0);
        assert_op_error(forward(&mut output(&x, &[4]), &narrow, Kind::Tanh), "gelu", "all f32 or all bf16");
        assert_op_error(
            backward(&mut output(&x, &[4]), &narrow, &x, Kind::Exact),
            "gelu",
            "all f32 or all bf16",
        );
        assert_op_error(forward(&mut rng.tensor(&[4], 1.0), &x, Kind::Quick), "tensor", "host-executed");
    });
}
