use mpa::ops::quantize::forward;
use mpa::tensor::{DType, Tensor};

use crate::common::{Rng, assert_op_error, assert_same_on_any_pool, values};

fn quantised(x: &Tensor) -> (Tensor, Tensor) {
    let mut q = Tensor::from_i8(x.shape(), vec![99; x.len()]).unwrap();
    let mut scale = Tensor::from_vec(&[x.rows()], vec![f32::NAN; x.rows()]).unwrap();
    forward(&mut q, &mut scale, x).unwrap();
    (q, scale)
}

#[test]
fn the_nearest_of_255_levels_by_row() {
    let mut rng = Rng(1);
    for (rows, cols, size) in [(1, 1, 1.0), (3, 7, 1e-30), (5, 64, 1e30), (40, 577, 3.0), (2, 40_000, 1.0)] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            if dtype == DType::F16 && !(1e-3..1e3).contains(&size) {
                continue;
            }
            let x = rng.tensor(&[rows, cols], size).to_dtype(dtype).unwrap();
            let (q, scale) = quantised(&x);
            let x = x.to_f32().unwrap();
            let rows = values(&x).chunks(cols).zip(q.i8s().unwrap().chunks(cols));
            for ((x, q), &scale) in rows.zip(values(&scale)) {
                let most = x.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
                assert!((f64::from(scale) / (most / 127.0) - 1.0).abs() < 1e-6, "scale {scale}, {most}");
                for (&x, &q) in x.iter().zip(q) {
                    let exact = f64::from(x) / (most / 127.0);
                    // Half a level; the product with the reciprocal rounds twice, each by 6e-8 of at most 127.
                    assert!((exact - f64::from(q)).abs() <= 0.5 + 2e-5, "{q} for {exact}");
                }
                assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(127));
            }
        }
    }
}

#[test]
fn ties_go_to_even() {
    let x = Tensor::from_vec(&[1, 5], vec![127.0, 0.5, 1.5, -2.5, -0.5]).unwrap();
    let (q, scale) = quantised(&x);
    assert_eq!((q.i8s().unwrap(), values(&scale)), (&[127, 0, 2, -2, 0][..], &[1.0][..]));
}

#[test]
fn rows_of_zeros_of_nothing_and_without_bounds() {
    let (big, tiny) = (f32::MAX, f32::MIN_POSITIVE / 8.0);
    let rows = [[0.0, -0.0], [tiny, -tiny], [big, -big], [f32::INFINITY, 1.0], [1.0, f32::NAN]];
    let (q, scale) = quantised(&Tensor::from_vec(&[5, 2], rows.concat()).unwrap());
    assert_eq!(q.i8s().unwrap(), [0, 0, 0, 0, 127, -127, 0, 0, 0, 0]);
    assert_eq!(values(&scale)[..3], [0.0, 0.0, big / 127.0]);
    assert!(values(&scale)[3..].iter().all(|s| s.is_nan()));
    for shape in [[0, 3], [3, 0]] {
        let (_, scale) = quantised(&Tensor::zeros(&shape));
        assert_eq!(values(&scale), vec![0.0; shape[0]]);
    }
}

#[test]
fn same_bits_on_any_pool() {
    let x = Rng(2).tensor(&[301, 577], 2.0);
    assert_same_on_any_pool("quantize", || {
        let (q, scale) = quantised(&x);
        let q = q.to_f32().unwrap();
        [values(&q), values(&scale)].concat()
    });
}

#[test]
fn other_shapes_and_types_are_refused() {
    let x = Tensor::zeros(&[2, 3]);
    let (q, scale) = (Tensor::from_i8(&[2, 3], vec![0; 6]).unwrap(), Tensor::zeros(&[2]));
    let other = Tensor::from_i8(&[6], vec![0; 6]).unwrap();
    assert_op_error(forward(&mut other.clone(), &mut scale.clone(), &x), "quantize", "q [2, 3]");
    assert_op_error(forward(&mut q.clone(), &mut Tensor::zeros(&[3]), &x), "quantize", "scale [2]");
    assert_op_error(forward(&mut x.clone(), &mut scale.clone(), &x), "quantize", "q in i8");
}
