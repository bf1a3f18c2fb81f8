use mpa::ops::add::forward;

use crate::common::{Rng, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, on_each_device, random, rounded_sum, values, what};

/// Lengths: one, around a pack of either type, around a block's share of either type, several blocks with a tail.
const LENGTHS: [usize; 10] = [1, 3, 4, 7, 8, 9, 1024, 1027, 2049, 6145];

#[test]
fn forward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for n in LENGTHS {
            for dtype in DTYPES {
                for scale in [1e-30, 1.0, 1e30] {
                    let mut out = random(&mut rng, device, dtype, &[n], scale);
                    let x = random(&mut rng, device, dtype, &[n], scale);
                    let want: Vec<f64> = to_f64(&out).iter().zip(to_f64(&x)).map(|(a, b)| a + b).collect();
                    forward(&mut out, &x).unwrap();
                    let name = what(&[&"add", &n, &dtype, &scale]);
                    assert_close(&name, &values(&out), &want, rounded_sum(dtype, 1, f64::from(scale)));
                }
            }
        }
    });
}

#[test]
fn a_copy_is_not_changed_with_its_original() {
    on_each_device(|device| {
        let x = random(&mut Rng(2), device, DTYPES[0], &[3, 5], 1.0);
        let mut out = x.clone();
        forward(&mut out, &x).unwrap();
        forward(&mut out, &x).unwrap();
        let want: Vec<f64> = to_f64(&x).iter().map(|x| 3.0 * x).collect();
        assert_close("x + x + x", &values(&out), &want, rounded_sum(DTYPES[0], 2, 1.0));
    });
}

#[test]
fn nothing_and_mixed_types() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let [wide, narrow] = DTYPES.map(|dtype| random(&mut rng, device, dtype, &[4], 1.0));
        assert_op_error(forward(&mut wide.clone(), &narrow), "add", "all f32 or all bf16");
        assert_op_error(forward(&mut rng.tensor(&[4], 1.0), &wide), "tensor", "host-executed");
        let empty = random(&mut rng, device, DTYPES[0], &[0, 7], 1.0);
        forward(&mut empty.clone(), &empty).unwrap();
    });
}
