use mpa::ops::patch_embed::{Pixels, Projection, backward, forward};
use mpa::tensor::{DType, Tensor};

use crate::common::patches::{Inputs, Shape};
use crate::common::{Rng, Tolerance, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, TINY, on_each, on_each_device, output, random, rounded_sum, values, what};

/// `shape` in words.
fn name(s: Shape, dtype: DType) -> String {
    what(&[&"patch_embed", &s.n, &s.h, &s.w, &s.frames, &s.side, &s.merge, &s.cols, &dtype])
}

/// A patch's sum, bias and position, and what rounding the levels to bf16 adds: each of the k products is off by up to 2^-9 of its size, in
/// no direction, which sums up to sqrt(k) / 3 of that; four times.
fn tolerance(s: Shape, dtype: DType) -> Tolerance {
    let k = s.patch_len();
    let sum = rounded_sum(dtype, k + 2, 1.0);
    match dtype {
        DType::Bf16 => Tolerance { abs: sum.abs + 4.0 * (k as f64).sqrt() / 3.0 * 2f64.powi(-9), ..sum },
        _ => sum,
    }
}

/// One pixel; odd sides, whose K = 27, 108, 147 and 588 are or are not a multiple of 8; pixels beyond the last patch; rows and columns that end
/// within a tile and beyond; the real patches of 14 and 16; no patch at all.
const SHAPES: [Shape; 10] = [
    Shape::new(1, (1, 1), 1, 1),
    Shape::new(2, (7, 11), 3, 5),
    Shape::new(3, (13, 6), 6, 34),
    Shape::new(5, (28, 27), 7, 67),
    Shape::new(2, (33, 17), 16, 20),
    Shape::new(1, (28, 42), 14, 9),
    Shape::new(17, (16, 16), 8, 65),
    Shape::new(2, (3, 3), 4, 5),
    Shape::new(0, (8, 8), 4, 5),
    Shape::new(2, (6, 6), 2, 3),
];

/// Squares of 2 x 2 patches of two frames: a strip each way, several pictures, more patches than a tile has rows, the real patches of 14.
const MERGED: [Shape; 5] = [
    Shape::qwen(1, (2, 2), 1, 1),
    Shape::qwen(1, (4, 24), 2, 7),
    Shape::qwen(3, (24, 8), 4, 33),
    Shape::qwen(1, (20, 28), 2, 10),
    Shape::qwen(1, (56, 28), 14, 12),
];

#[test]
fn forward_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for s in SHAPES.into_iter().chain(MERGED) {
            for dtype in DTYPES {
                let i = Inputs::new(s, &mut rng).rounded(dtype).on(device);
                let mut out = output(&i.weight, &[s.n, s.patches(), s.cols]);
                forward(&mut out, None, &i.pixels, i.projection()).unwrap();
                assert_close(&name(s, dtype), &values(&out), &i.reference(), tolerance(s, dtype));
            }
        }
    });
}

#[test]
fn forward_without_bias_or_position_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        for s in [SHAPES[1], SHAPES[3], MERGED[2]] {
            for dtype in DTYPES {
                let i = Inputs::new(s, &mut rng).rounded(dtype).on(device);
                for (without_bias, without_position) in [(true, true), (true, false), (false, true)] {
                    let mut projection = i.projection();
                    projection.bias = projection.bias.filter(|_| !without_bias);
                    projection.position = projection.position.filter(|_| !without_position);
                    let mut out = output(&i.weight, &[s.n, s.patches(), s.cols]);
                    forward(&mut out, None, &i.pixels, projection).unwrap();
                    let want = i.reference_without(without_bias, without_position);
                    assert_close(&name(s, dtype), &values(&out), &want, tolerance(s, dtype));
                }
            }
        }
    });
}

/// Tiles of 128 x 128: one that is not full, and several.
#[test]
fn large_tiles_match_f64() {
    on_each(TINY, |device| {
        let mut rng = Rng(3);
        for s in [
            Shape::new(1, (21, 28), 7, 10),
            Shape::new(2, (40, 68), 4, 131),
            Shape::qwen(3, (16, 24), 2, 129),
        ] {
            let i = Inputs::new(s, &mut rng).rounded(DType::Bf16).on(device);
            let mut out = output(&i.weight, &[s.n, s.patches(), s.cols]);
            forward(&mut out, None, &i.pixels, i.projection()).unwrap();
            assert_close(&name(s, DType::Bf16), &values(&out), &i.reference(), tolerance(s, DType::Bf16));
        }
    });
}

/// A picture has the same rows, to the bit, alone and among others.
#[test]
fn pictures_do_not_depend_on_each_other() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for s in [Shape::new(6, (21, 28), 7, 10), Shape::qwen(6, (16, 8), 2, 10)] {
            for dtype in DTYPES {
                let i = Inputs::new(s, &mut rng).rounded(dtype).on(device);
                let run = |pixels: &Pixels| {
                    let mut out = output(&i.weight, &[pixels.count(), s.patches(), s.cols]);
                    forward(&mut out, None, pixels, i.projection()).unwrap();
                    values(&out)
                };
                let all = run(&i.pixels);
                let last = i.pixels.values.slice(s.n - 1..s.n).unwrap();
                let alone = run(&Pixels { values: last, levels: i.pixels.levels.clone() });
                assert_eq!(alone, all[all.len() - alone.len()..], "{}", name(s, dtype));
            }
        }
    });
}

/// The patches that training keeps are those of the CPU, rounded.
#[test]
fn patches_are_those_of_the_cpu() {
    on_each_device(|device| {
        let mut rng = Rng(6);
        for s in SHAPES.into_iter().chain(MERGED) {
            for dtype in DTYPES {
                let here = Inputs::new(s, &mut rng).rounded(dtype);
                let mut want = Tensor::zeros(&[s.n * s.patches(), s.patch_len()]);
                let mut out = Tensor::zeros(&[s.n, s.patches(), s.cols]);
                forward(&mut out, Some(&mut want), &here.pixels, here.projection()).unwrap();
                let i = here.on(device);
                let mut out = output(&i.weight, out.shape());
                let mut patches = output(&i.weight, want.shape());
                forward(&mut out, Some(&mut patches), &i.pixels, i.projection()).unwrap();
                // Of no patches the CPU makes none.
                if !out.is_empty() {
                    assert_eq!(
                        values(&patches),
                        values(&want.to_dtype(dtype).unwrap()),
                        "{}",
                        name(s, dtype)
                    );
                }
                assert_close(&name(s, dtype), &values(&out), &i.reference(), tolerance(s, dtype));
            }
        }
    });
}

/// Pictures, patches, columns: one of each, odd ones that no pack fits, several blocks, more patches than warps that add.
const BACKWARD: [(usize, usize, usize); 6] =
    [(1, 1, 1), (3, 2, 5), (2, 4, 8), (5, 9, 36), (2, 40, 67), (4, 10, 264)];

#[test]
fn backward_sums_match_f64() {
    on_each_device(|device| {
        let mut rng = Rng(7);
        for (n, p, cols) in BACKWARD {
            for dtype in DTYPES {
                let dy = random(&mut rng, device, dtype, &[n, p, cols], 1.0);
                let patches = random(&mut rng, device, dtype, &[n * p, 12], 1.0);
                let [weight, bias, position] = [&[cols, 3, 2, 2][..], &[cols], &[p, cols]]
                    .map(|shape| random(&mut rng, device, DType::F32, shape, 1.0));
                let run = || {
                    let (mut dw, mut db, mut dp) = (weight.clone(), bias.clone(), position.clone());
                    backward(&mut dw, Some((&mut db, &mut dp)), &dy, &patches).unwrap();
                    [dw, db, dp]
                };
                let (mut db, mut dp, mut dw) = (to_f64(&bias), to_f64(&position), to_f64(&weight));
                let x = to_f64(&patches);
                for (i, d) in to_f64(&dy).into_iter().enumerate() {
                    db[i % cols] += d;
                    dp[i % (p * cols)] += d;
                    for k in 0..12 {
                        dw[i % cols * 12 + k] += d * x[i / cols * 12 + k];
                    }
                }
                let got = run();
                let name = what(&[&"patch_embed backward", &n, &p, &cols, &dtype]);
                for (got, want) in got.iter().zip([dw, db, dp]) {
                    assert_close(&name, &values(got), &want, rounded_sum(DType::F32, n * p, 1.0));
                }
                assert_eq!(run().map(|t| values(&t)), got.map(|t| values(&t)), "{name} twice");
            }
        }
    });
}

#[test]
fn what_no_kernel_does_is_refused() {
    on_each_device(|device| {
        let i = Inputs::new(SHAPES[1], &mut Rng(5)).on(device);
        let s = i.shape;
        let run = |patches: Option<&mut Tensor>, pixels: &Pixels, projection: Projection| {
            forward(&mut output(&i.weight, &[s.n, s.patches(), s.cols]), patches, pixels, projection)
        };
        let patches = output(&i.weight, &[s.n * s.patches(), s.patch_len()]);
        let mut narrow = patches.to_dtype(DType::Bf16).unwrap().to_device(device).unwrap();
        let mixed = run(Some(&mut narrow), &i.pixels, i.projection());
        assert_op_error(mixed, "patch_embed", "all f32 or all bf16");
        let narrow = i.bias.to_dtype(DType::Bf16).unwrap().to_device(device).unwrap();
        let mixed = Projection { bias: Some(&narrow), ..i.projection() };
        assert_op_error(run(None, &i.pixels, mixed), "patch_embed", "all f32 or all bf16");
        let levels = i.pixels.levels.to_dtype(DType::Bf16).unwrap().to_device(device).unwrap();
        let pixels = Pixels { levels, ..i.pixels.clone() };
        assert_op_error(run(None, &pixels, i.projection()), "patch_embed", "levels f32");
        let pixels = Pixels { levels: Tensor::zeros(&[3, 256]), ..i.pixels.clone() };
        assert_op_error(run(None, &pixels, i.projection()), "tensor", "host-executed");
    });
}
