use mpa::ops::clip_grad_norm::norm;
use mpa::tensor::{DType, Tensor};

use crate::common::{Rng, assert_op_error, to_f64};
use crate::device::{on_each_device, random, what};

/// Squares and sums are f64, so only the gradients' own bits count: sums of n terms in another order.
const REL: f64 = 1e-12;

fn check(name: &str, grads: &[Tensor]) {
    let want = grads.iter().flat_map(to_f64).map(|g| g * g).sum::<f64>().sqrt();
    let run = || norm(&grads.iter().collect::<Vec<_>>()).unwrap();
    let got = run();
    assert!((got - want).abs() <= REL * want, "{name}: {got}, expected {want}");
    assert_eq!(run().to_bits(), got.to_bits(), "{name} twice");
}

/// One element, parts of four, of a thread's round, of a chunk and of several; none; more chunks than threads that add them up.
#[test]
fn norm_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        let mut list = |lengths: &[usize], scale: f32| -> Vec<Tensor> {
            lengths.iter().map(|&n| random(&mut rng, device, DType::F32, &[n], scale)).collect()
        };
        for lengths in [&[1][..], &[3, 4, 5], &[1024, 1025, 1027], &[4096, 0, 4097, 8191, 2]] {
            for scale in [1e-30, 1.0, 1e30] {
                check(&what(&[&"clip_grad_norm", &lengths.len(), &scale]), &list(lengths, scale));
            }
        }
        check("many tensors", &list(&[1; 270], 1.0));
        check("none but empty", &list(&[0], 1.0));
    });
}

#[test]
fn what_is_not_finite_shows() {
    on_each_device(|device| {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![1.0; 5000];
            values[4999] = bad;
            let grad = Tensor::from_vec(&[5000], values).unwrap().to_device(device).unwrap();
            assert!(!norm(&[&grad]).unwrap().is_finite());
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        let [wide, narrow] =
            [DType::F32, DType::Bf16].map(|dtype| random(&mut rng, device, dtype, &[4], 1.0));
        assert_op_error(norm(&[&wide, &narrow]), "clip_grad_norm", "in f32");
        assert_op_error(norm(&[&wide, &rng.tensor(&[4], 1.0)]), "tensor", "host-executed");
    });
}
