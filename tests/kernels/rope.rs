use mpa::ops::rope::{backward, backward_pair, backward_split, forward, forward_pair, forward_split, table};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

/// Tokens, heads of queries and keys, head size, rotated part. Odd sizes; halves and heads that packs of one type or the other do not fit, each alone;
/// a part that stays; more than one round of a warp; tokens that do not fill a block.
const SHAPES: [(usize, usize, usize, usize, usize); 9] = [
    (1, 1, 1, 2, 2),
    (3, 3, 1, 10, 10),
    (5, 2, 2, 16, 4),
    (3, 2, 1, 12, 12),
    (4, 2, 1, 20, 16),
    (6, 2, 1, 18, 8),
    (7, 2, 1, 24, 16),
    (6, 4, 2, 72, 72),
    (9, 15, 5, 64, 64),
];

/// Rotates the first 2 * half elements of each head; no table: nothing.
fn reference(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Vec<f64> {
    let (head_size, half) = (x.cols() / heads, cos.cols());
    let (x, cos, sin) = (to_f64(x), to_f64(cos), to_f64(sin));
    let mut out = x.clone();
    for head in 0..x.len() / head_size {
        for i in 0..half {
            let (a, b) = (head * head_size + i, head * head_size + i + half);
            let (c, s) = (cos[head / heads * half + i], sin[head / heads * half + i]);
            out[a] = x[a] * c - x[b] * s;
            out[b] = x[b] * c + x[a] * s;
        }
    }
    out
}

fn angles(rng: &mut Rng, device: &Device, tokens: usize, rotated: usize) -> (Tensor, Tensor) {
    let positions: Vec<u32> = (0..tokens).map(|_| rng.below(3000) as u32).collect();
    let (cos, sin) = table(&positions, 1e4, rotated).unwrap();
    (cos.to_device(device).unwrap(), sin.to_device(device).unwrap())
}

#[test]
fn forward_matches_f64_and_leaves_the_rest() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (tokens, heads, kv_heads, head_size, rotated) in SHAPES {
            for dtype in DTYPES {
                for scale in [1e-30, 1.0, 1e4] {
                    let (cos, sin) = angles(&mut rng, device, tokens, rotated);
                    let mut q = random(&mut rng, device, dtype, &[tokens, heads * head_size], scale);
                    let mut k = random(&mut rng, device, dtype, &[tokens, kv_heads * head_size], scale);
                    let mut alone = q.clone();
                    let want = [reference(&q, &cos, &sin, heads), reference(&k, &cos, &sin, kv_heads)];
                    let stay = [values(&q), values(&k)];
                    forward(&mut alone, &cos, &sin, heads).unwrap();
                    forward_pair(&mut q, &mut k, &cos, &sin, [heads, kv_heads]).unwrap();
                    let name = what(&[&"rope", &tokens, &heads, &head_size, &rotated, &dtype, &scale]);
                    assert_eq!(values(&alone), values(&q), "{name}");
                    for ((got, want), stay) in [values(&q), values(&k)].iter().zip(&want).zip(&stay) {
                        assert_close(&name, got, want, rounded_sum(dtype, 2, f64::from(scale)));
                        for (got, was) in got.chunks(head_size).zip(stay.chunks(head_size)) {
                            assert_eq!(got[rotated..], was[rotated..], "{name}");
                        }
                    }
                }
            }
        }
    });
}

/// The sine with the other sign.
fn negative(sin: &Tensor) -> Tensor {
    Tensor::from_vec(sin.shape(), values(sin).iter().map(|s| -s).collect()).unwrap()
}

#[test]
fn backward_turns_back() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        for (tokens, heads, kv_heads, head_size, rotated) in SHAPES {
            for dtype in DTYPES {
                let (cos, sin) = angles(&mut rng, device, tokens, rotated);
                let back = negative(&sin);
                let [mut dq, mut dk] = [heads, kv_heads]
                    .map(|heads| random(&mut rng, device, dtype, &[tokens, heads * head_size], 1.0));
                let mut alone = dk.clone();
                let want = [reference(&dq, &cos, &back, heads), reference(&dk, &cos, &back, kv_heads)];
                backward(&mut alone, &cos, &sin, kv_heads).unwrap();
                backward_pair(&mut dq, &mut dk, &cos, &sin, [heads, kv_heads]).unwrap();
                let name = what(&[&"rope backward", &tokens, &heads, &head_size, &rotated, &dtype]);
                assert_eq!(values(&alone), values(&dk), "{name}");
                for (got, want) in [dq, dk].iter().zip(&want) {
                    assert_close(&name, &values(got), want, rounded_sum(dtype, 2, 1.0));
                }
            }
        }
    });
}

#[test]
fn heads_of_two_sizes_and_no_rotation_at_all() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        let (cos, sin) = angles(&mut rng, device, 2, 4);
        let mut q = random(&mut rng, device, DType::F32, &[2, 3 * 4], 1.0);
        let mut k = random(&mut rng, device, DType::F32, &[2, 3 * 8], 1.0);
        let want = [reference(&q, &cos, &sin, 3), reference(&k, &cos, &sin, 3)];
        forward_pair(&mut q, &mut k, &cos, &sin, [3, 3]).unwrap();
        let tolerance = rounded_sum(DType::F32, 2, 1.0);
        assert_close("4 elements of 4", &values(&q), &want[0], tolerance);
        assert_close("4 elements of 8", &values(&k), &want[1], tolerance);

        let (cos, sin) = angles(&mut rng, device, 2, 0);
        let was = values(&q);
        forward_pair(&mut q, &mut k, &cos, &sin, [3, 3]).unwrap();
        assert_eq!(values(&q), was);
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let (cos, sin) = angles(&mut rng, device, 2, 4);
        let narrow = cos.to_dtype(DType::Bf16).unwrap().to_device(device).unwrap();
        let mut q = random(&mut rng, device, DType::F32, &[2, 4], 1.0);
        let mut k = random(&mut rng, device, DType::Bf16, &[2, 4], 1.0);
        let pair = forward_pair(&mut q, &mut k, &cos, &sin, [1, 1]);
        assert_op_error(pair, "rope", "all f32 or all bf16");
        assert_op_error(forward(&mut k, &cos, &narrow, 1), "rope", "f32 cos and sin");
        assert_op_error(forward(&mut k, &narrow, &sin, 1), "rope", "f32 cos and sin");
        let here = cos.to_f32().unwrap();
        assert_op_error(forward(&mut q, &here, &sin, 1), "tensor", "host-executed");
    });
}

#[test]
fn split_and_its_backward_match_f64() {
    on_each_device(|device| {
        let mut rng = Rng(5);
        for (tokens, heads, kv_heads, head_size, rotated) in SHAPES.into_iter().chain([(5, 2, 1, 8, 0)]) {
            for dtype in DTYPES {
                let (cos, sin) = angles(&mut rng, device, tokens, rotated);
                let widths = [heads * head_size, kv_heads * head_size, kv_heads * head_size];
                let all: usize = widths.iter().sum();
                let qkv = random(&mut rng, device, dtype, &[tokens, all], 1.0);
                let parts: Vec<Tensor> = (0..3)
                    .map(|i| {
                        let start: usize = widths[..i].iter().sum();
                        let rows = values(&qkv);
                        let rows = rows.chunks(all).flat_map(|row| row[start..start + widths[i]].to_vec());
                        Tensor::from_vec(&[tokens, widths[i]], rows.collect()).unwrap()
                    })
                    .collect();
                let [mut q, mut k, mut v] = widths.map(|w| output(&qkv, &[tokens, w]));
                forward_split([&mut q, &mut k, &mut v], &qkv, &cos, &sin, [heads, kv_heads]).unwrap();
                let name = what(&[&"rope split", &tokens, &heads, &head_size, &rotated, &dtype]);
                let want =
                    [reference(&parts[0], &cos, &sin, heads), reference(&parts[1], &cos, &sin, kv_heads)];
                assert_close(&name, &values(&q), &want[0], rounded_sum(dtype, 2, 1.0));
                assert_close(&name, &values(&k), &want[1], rounded_sum(dtype, 2, 1.0));
                assert_eq!(values(&v), values(&parts[2]), "{name}");

                let back = negative(&sin);
                let mut dqkv = output(&qkv, qkv.shape());
                let want =
                    [reference(&q, &cos, &back, heads), reference(&k, &cos, &back, kv_heads), to_f64(&v)];
                backward_split(&mut dqkv, [&mut q, &mut k, &mut v], &cos, &sin, [heads, kv_heads]).unwrap();
                let row =
                    |t: usize| (0..3).flat_map(move |i| (0..widths[i]).map(move |c| (i, t * widths[i] + c)));
                let want: Vec<f64> = (0..tokens).flat_map(row).map(|(i, at)| want[i][at]).collect();
                assert_close(&name, &values(&dqkv), &want, rounded_sum(dtype, 2, 1.0));
            }
        }
    });
}
