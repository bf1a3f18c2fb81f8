use mpa::ops::quantize::{MOST_ROTATED, forward, rotation};
use mpa::tensor::{DType, Tensor};

use crate::common::{Rng, assert_op_error, assert_same_on_any_pool, rotated, to_f64, values};

fn quantised(x: &Tensor, rotation: usize) -> (Tensor, Tensor) {
    let mut q = Tensor::from_i8(x.shape(), vec![99; x.len()]).unwrap();
    let mut scale = Tensor::from_vec(&[x.rows()], vec![f32::NAN; x.rows()]).unwrap();
    forward(&mut q, &mut scale, x, rotation).unwrap();
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
            let (q, scale) = quantised(&x, 1);
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
    let (q, scale) = quantised(&x, 1);
    assert_eq!((q.i8s().unwrap(), values(&scale)), (&[127, 0, 2, -2, 0][..], &[1.0][..]));
}

#[test]
fn rows_of_zeros_of_nothing_and_without_bounds() {
    let (big, tiny) = (f32::MAX, f32::MIN_POSITIVE / 8.0);
    let rows = [[0.0, -0.0], [tiny, -tiny], [big, -big], [f32::INFINITY, 1.0], [1.0, f32::NAN]];
    let (q, scale) = quantised(&Tensor::from_vec(&[5, 2], rows.concat()).unwrap(), 1);
    assert_eq!(q.i8s().unwrap(), [0, 0, 0, 0, 127, -127, 0, 0, 0, 0]);
    assert_eq!(values(&scale)[..3], [0.0, 0.0, big / 127.0]);
    assert!(values(&scale)[3..].iter().all(|s| s.is_nan()));
    for shape in [[0, 3], [3, 0]] {
        let (_, scale) = quantised(&Tensor::zeros(&shape), 1);
        assert_eq!(values(&scale), vec![0.0; shape[0]]);
    }
}

/// Half a level, and what f32 makes of log2(rotation) sums, each 6e-8 of all that it adds up.
#[test]
fn rotated_rows_are_those_times_the_hadamard_matrix() {
    let mut rng = Rng(3);
    for cols in [1, 2, 6, 16, 40, 576, 1536] {
        for rotation in (0..8).map(|i| 1 << i).filter(|&size| cols % size == 0) {
            for dtype in [DType::F32, DType::Bf16] {
                let x = rng.tensor(&[3, cols], 2.0).to_dtype(dtype).unwrap();
                let (q, scale) = quantised(&x, rotation);
                let want = rotated(&to_f64(&x), rotation);
                let rows = want.chunks(cols).zip(q.i8s().unwrap().chunks(cols));
                for ((want, q), &scale) in rows.zip(values(&scale)) {
                    let (scale, off) = (f64::from(scale), 7.0 * 6e-8 * 2.0 * rotation as f64);
                    let most = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                    assert!((127.0 * scale - most).abs() <= off + 1e-6 * most, "{cols} {rotation}: {scale}");
                    for (&want, &q) in want.iter().zip(q) {
                        let error = (f64::from(q) * scale - want).abs();
                        assert!(error <= 0.5001 * scale + off, "{cols} {rotation}: {q} x {scale} for {want}");
                    }
                }
            }
        }
    }
}

/// One element a hundred times the others: as it is, most of them are zero in int8; rotated, it is in every sum.
#[test]
fn a_rotation_spreads_an_outlier() {
    let mut data = values(&Rng(4).tensor(&[1, 128], 1.0)).to_vec();
    data[77] = 300.0;
    let x = Tensor::from_vec(&[1, 128], data).unwrap();
    let error = |rotation: usize| {
        let (q, scale) = quantised(&x, rotation);
        let q: Vec<f64> = q.i8s().unwrap().iter().map(|&q| f64::from(q) * to_f64(&scale)[0]).collect();
        // The matrix is its own inverse but for a factor.
        let back = rotated(&q, rotation).into_iter().map(|x| x / rotation as f64);
        back.zip(to_f64(&x)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
    };
    assert!(5.0 * error(128) < error(1), "off by {} rotated, {} as it is", error(128), error(1));
}

#[test]
fn a_rotation_is_the_largest_power_of_two_that_divides_the_width() {
    let widths = [(1, 1), (0, 1), (7, 1), (40, 8), (576, 64), (1536, 128), (18944, 128), (1 << 20, 128)];
    for (cols, expected) in widths {
        assert_eq!(rotation(cols, MOST_ROTATED), expected, "{cols}");
    }
    assert_eq!((rotation(1536, 1), rotation(1536, 32), rotation(24, 32)), (1, 32, 8));
    let x = Tensor::zeros(&[2, 24]);
    let (mut q, mut scale) = (x.like_i8(&[2, 24]).unwrap(), Tensor::zeros(&[2]));
    for other in [0, 3, 16, 256] {
        assert_op_error(forward(&mut q, &mut scale, &x, other), "quantize", "a rotation of 1, 2, 4");
    }
}

#[test]
fn sums_beyond_f32_are_not_a_number() {
    let x = Tensor::from_vec(&[1, 2], vec![f32::MAX, f32::MAX]).unwrap();
    let (q, scale) = quantised(&x, 2);
    assert!(values(&scale)[0].is_nan() && q.i8s().unwrap() == [0, 0]);
}

#[test]
fn same_bits_on_any_pool() {
    let x = Rng(2).tensor(&[301, 576], 2.0);
    assert_same_on_any_pool("quantize", || {
        let (q, scale) = quantised(&x, 64);
        let q = q.to_f32().unwrap();
        [values(&q), values(&scale)].concat()
    });
}

#[test]
fn other_shapes_and_types_are_refused() {
    let x = Tensor::zeros(&[2, 3]);
    let (q, scale) = (Tensor::from_i8(&[2, 3], vec![0; 6]).unwrap(), Tensor::zeros(&[2]));
    let other = Tensor::from_i8(&[6], vec![0; 6]).unwrap();
    assert_op_error(forward(&mut other.clone(), &mut scale.clone(), &x, 1), "quantize", "q [2, 3]");
    assert_op_error(forward(&mut q.clone(), &mut Tensor::zeros(&[3]), &x, 1), "quantize", "scale [2]");
    assert_op_error(forward(&mut x.clone(), &mut scale.clone(), &x, 1), "quantize", "q in i8");
}
