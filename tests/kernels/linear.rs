use mpa::ops::linear;
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, Tolerance, assert_close, assert_op_error, running_sum, to_f64};
use crate::device::{DTYPES, TINY, on_each, on_each_device, output, random, rounded_sum, values, what};

/// x W^T
fn product(x: &[f64], weight: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    let dot = |i: usize, j: usize| {
        let (x, w) = (&x[i * k..(i + 1) * k], &weight[j * k..(j + 1) * k]);
        x.iter().zip(w).map(|(x, w)| x * w).sum()
    };
    (0..m * n).map(|i| dot(i / n, i % n)).collect()
}

/// One running sum of `n` terms, rounded to `dtype`.
fn one_sum(dtype: DType, n: usize) -> Tolerance {
    let rounded = rounded_sum(dtype, n, 1.0);
    Tolerance { abs: rounded.abs.max(running_sum(n).abs), ..rounded }
}

fn with_bias(mut product: Vec<f64>, bias: Option<&Tensor>) -> Vec<f64> {
    if let Some(bias) = bias.map(to_f64) {
        for row in product.chunks_mut(bias.len()) {
            row.iter_mut().zip(&bias).for_each(|(p, b)| *p += b);
        }
    }
    product
}

/// x, weight and bias of numbers up to `scale`, 1 / scale and 1.
fn inputs(
    rng: &mut Rng,
    device: &Device,
    dtype: DType,
    (m, n, k): (usize, usize, usize),
    scale: f32,
) -> [Tensor; 3] {
    [
        random(rng, device, dtype, &[m, k], scale),
        random(rng, device, dtype, &[n, k], 1.0 / scale),
        random(rng, device, dtype, &[n], 1.0),
    ]
}

fn check(name: &str, out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) {
    let (m, n, k) = (x.rows(), weight.rows(), x.cols());
    linear::forward(out, x, weight, bias).unwrap();
    let want = with_bias(product(&to_f64(x), &to_f64(weight), m, n, k), bias);
    let name = what(&[&name, &m, &"x", &n, &"x", &k, &x.dtype(), &"to", &out.dtype()]);
    assert_close(&name, &values(out), &want, one_sum(out.dtype(), k + 1));
}

/// M, N, K of at most 16 rows. K: one, odd, less than a warp's stretch, aligned or not, more than one round of the block's warps, and than the four
/// that are read at once. Rows of x for the lower and for both halves of an mma, with W's rows ending in each half of a block.
const FEW: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (1, 16, 8),
    (4, 7, 3),
    (8, 33, 24),
    (9, 24, 108),
    (16, 17, 264),
    (3, 40, 600),
    (16, 5, 1031),
    (5, 20, 2312),
    (1, 9, 0),
];

/// M, N, K beyond: edges of the tiles, K shorter and longer than the pipeline, K that is not aligned, odd N.
const MANY: [(usize, usize, usize); 8] = [
    (17, 1, 1),
    (17, 65, 40),
    (64, 64, 32),
    (65, 66, 264),
    (70, 129, 108),
    (33, 7, 3),
    (130, 34, 72),
    (18, 4, 0),
];

/// More of them for tiles of 128 x 128.
const LARGE: [(usize, usize, usize); 4] = [(80, 163, 40), (130, 129, 43), (129, 257, 168), (65, 128, 32)];

#[test]
fn forward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for shape in FEW.into_iter().chain(MANY) {
            for dtype in DTYPES {
                for scale in [1e-4, 1.0, 1e4] {
                    let [x, weight, bias] = inputs(&mut rng, device, dtype, shape, scale);
                    let mut out = output(&x, &[shape.0, shape.1]);
                    check("linear", &mut out, &x, &weight, Some(&bias));
                }
            }
        }
    });
}

#[test]
fn forward_without_bias_or_to_f32_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        for shape in FEW.into_iter().chain(MANY) {
            let [x, weight, bias] = inputs(&mut rng, device, DType::Bf16, shape, 1.0);
            check("linear", &mut x.like_f32(&[shape.0, shape.1]).unwrap(), &x, &weight, None);
            check("linear", &mut x.like_f32(&[shape.0, shape.1]).unwrap(), &x, &weight, Some(&bias));
            check("linear", &mut output(&x, &[shape.0, shape.1]), &x, &weight, None);
        }
    });
}

#[test]
fn large_tiles_match_f64() {
    on_each(TINY, |device| {
        let mut rng = Rng(3);
        for (m, n, k) in MANY.into_iter().chain(LARGE) {
            let [x, weight, bias] = inputs(&mut rng, device, DType::Bf16, (m, n, k), 1.0);
            check("linear", &mut output(&x, &[m, n]), &x, &weight, Some(&bias));
            check("linear", &mut x.like_f32(&[m, n]).unwrap(), &x, &weight, None);
        }
    });
}

/// Rows that other rows join keep their bits, among few rows and among many, and in both tiles; W's rows do as well.
#[test]
fn rows_do_not_depend_on_each_other() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for (m, few, n, k, dtype) in [
            (16, 1, 20, 600, DType::Bf16),
            (13, 9, 20, 108, DType::Bf16),
            (150, 17, 10, 200, DType::Bf16),
            (150, 17, 10, 3, DType::Bf16),
            (70, 1, 33, 100, DType::F32),
        ] {
            let [x, weight, bias] = inputs(&mut rng, device, dtype, (m, n, k), 1.0);
            let run = |x: &Tensor| {
                let mut out = output(x, &[x.rows(), n]);
                linear::forward(&mut out, x, &weight, Some(&bias)).unwrap();
                values(&out)
            };
            let all = run(&x);
            let first = run(&x.slice(0..few).unwrap());
            let last = run(&x.slice(m - few..m).unwrap());
            assert_eq!(first, all[..few * n], "{m} {few} {dtype}");
            assert_eq!(last, all[(m - few) * n..], "{m} {few} {dtype}");
        }
        let (m, n, k) = (20, 128 * 128, 40);
        let [x, weight, _] = inputs(&mut rng, device, DType::Bf16, (m, n, k), 1.0);
        let mut large = output(&x, &[m, n]);
        linear::forward(&mut large, &x, &weight, None).unwrap();
        let mut small = output(&x, &[m, 70]);
        linear::forward(&mut small, &x, &weight.slice(100..170).unwrap(), None).unwrap();
        let (large, small) = (values(&large), values(&small));
        for (large, small) in large.chunks(n).zip(small.chunks(70)) {
            assert_eq!(large[100..170], *small, "both tiles");
        }
    });
}

/// What a column holds spreads to no other, what lies beyond a matrix is not read: NaN and infinity stay where they are.
#[test]
fn infinities_stay_in_their_rows() {
    on_each_device(|device| {
        for (m, n, k) in [(3, 20, 40), (17, 20, 40), (17, 20, 41)] {
            for dtype in DTYPES {
                let ones = |rows, at: usize| {
                    let mut data = vec![1.0; rows * k];
                    data[at * k] = f32::INFINITY;
                    let all = Tensor::from_vec(&[rows, k], data).unwrap();
                    all.to_dtype(dtype).unwrap().to_device(device).unwrap()
                };
                let (x, weight) = (ones(m, m - 1), ones(n, n - 1));
                let mut out = output(&x, &[m, n]);
                linear::forward(&mut out, &x, &weight, None).unwrap();
                for (i, value) in values(&out).into_iter().enumerate() {
                    let inside = i / n < m - 1 && i % n < n - 1;
                    assert_eq!(
                        value,
                        if inside { k as f32 } else { f32::INFINITY },
                        "{m}x{n}x{k} {i} {dtype}"
                    );
                }
            }
        }
    });
}

#[test]
fn empty_products_do_nothing() {
    on_each_device(|device| {
        let mut rng = Rng(6);
        for dtype in DTYPES {
            for (m, n) in [(0, 3), (3, 0), (0, 0)] {
                let [x, weight, bias] = inputs(&mut rng, device, dtype, (m, n, 8), 1.0);
                linear::forward(&mut output(&x, &[m, n]), &x, &weight, Some(&bias)).unwrap();
            }
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(7);
        let [x, weight, bias] = inputs(&mut rng, device, DType::Bf16, (2, 3, 8), 1.0);
        let [wide_x, wide_weight, wide_bias] = inputs(&mut rng, device, DType::F32, (2, 3, 8), 1.0);
        let run = |out: &Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor| {
            linear::forward(&mut output(out, &[2, 3]), x, weight, Some(bias))
        };
        let one_type = "all f32 or all bf16";
        assert_op_error(run(&x, &x, &wide_weight, &bias), "linear forward", one_type);
        assert_op_error(run(&x, &x, &weight, &wide_bias), "linear forward", one_type);
        assert_op_error(run(&x, &wide_x, &wide_weight, &wide_bias), "linear forward", one_type);
        assert_op_error(run(&x, &x, &rng.tensor(&[3, 8], 1.0), &bias), "linear forward", one_type);
        let here = rng.tensor(&[3, 8], 1.0).to_dtype(DType::Bf16).unwrap();
        assert_op_error(run(&x, &x, &here, &bias), "tensor", "host-executed");
    });
}
