use mpa::ops::add::forward;

use crate::common::{Rng, assert_op_error, assert_same_on_any_pool, poisoned, values};

#[test]
fn adds_exactly() {
    let mut rng = Rng(1);
    for shape in [&[0][..], &[1], &[7, 3], &[1, 16 * 1024 + 5], &[3, 5, 4001]] {
        for scale in [1e-30, 1.0, 1e4] {
            let (mut out, x) = (rng.tensor(shape, scale), rng.tensor(shape, scale));
            let want: Vec<f32> = values(&out).iter().zip(values(&x)).map(|(a, b)| a + b).collect();
            forward(&mut out, &x).unwrap();
            assert_eq!(values(&out), want, "{shape:?}");
        }
    }
}

#[test]
fn other_shapes_are_refused() {
    let mut rng = Rng(2);
    assert_op_error(forward(&mut poisoned(&[2, 3]), &rng.tensor(&[3, 2], 1.0)), "add", "[3, 2]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(3);
    let (a, x) = (rng.tensor(&[50_001], 1.0), rng.tensor(&[50_001], 1.0));
    assert_same_on_any_pool("add", || {
        let mut out = a.clone();
        forward(&mut out, &x).unwrap();
        values(&out).to_vec()
    });
}
