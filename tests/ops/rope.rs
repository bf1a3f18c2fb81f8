use mpa::ops::rope::{
    backward, backward_split, forward, forward_pair, forward_split, table, table_2d, table_mrope,
};
use mpa::tensor::Tensor;

use crate::common::{
    F32, Rng, assert_close, assert_op_error, assert_same_on_any_pool, dot, finite_differences, to_f64, values,
};

/// Rotates the first 2 * half elements of each head.
fn reference(x: &[f64], cos: &[f64], sin: &[f64], heads: usize, head_size: usize, half: usize) -> Vec<f64> {
    let mut out = x.to_vec();
    for t in 0..x.len() / (heads * head_size) {
        for h in 0..heads {
            for i in 0..half {
                let (a, b) = ((t * heads + h) * head_size + i, (t * heads + h) * head_size + i + half);
                let (c, s) = (cos[t * half + i], sin[t * half + i]);
                out[a] = x[a] * c - x[b] * s;
                out[b] = x[b] * c + x[a] * s;
            }
        }
    }
    out
}

/// (T, heads, head size, rotated part)
const SHAPES: [(usize, usize, usize, usize); 6] =
    [(0, 2, 4, 4), (1, 1, 2, 2), (3, 3, 10, 10), (5, 2, 16, 4), (129, 3, 64, 64), (7, 1, 6, 0)];

#[test]
fn rotation_and_its_inverse_match_f64() {
    let mut rng = Rng(1);
    for (t, heads, head_size, rotated) in SHAPES {
        let positions: Vec<u32> = (0..t).map(|_| rng.below(3000) as u32).collect();
        let (cos, sin) = table(&positions, 1e5, rotated).unwrap();
        for scale in [1e-30, 1.0, 1e4] {
            let x = rng.tensor(&[t, heads * head_size], scale);
            let (cos64, sin64) = (to_f64(&cos), to_f64(&sin));
            let minus: Vec<f64> = sin64.iter().map(|s| -s).collect();
            let tolerance = crate::common::Tolerance { abs: f64::from(scale) * F32.abs, ..F32 };

            let mut out = x.clone();
            forward(&mut out, &cos, &sin, heads).unwrap();
            let want = reference(&to_f64(&x), &cos64, &sin64, heads, head_size, rotated / 2);
            assert_close("rope", values(&out), &want, tolerance);

            let mut dx = x.clone();
            backward(&mut dx, &cos, &sin, heads).unwrap();
            let want = reference(&to_f64(&x), &cos64, &minus, heads, head_size, rotated / 2);
            assert_close("rope backward", values(&dx), &want, tolerance);
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    let (cos, sin) = table(&[0, 5, 77], 1e4, 6).unwrap();
    let (x, dy) = (rng.tensor(&[3, 16], 1.0), rng.tensor(&[3, 16], 1.0));
    let mut dx = dy.clone();
    backward(&mut dx, &cos, &sin, 2).unwrap();
    let [x64, dy64, cos64, sin64] = [&x, &dy, &cos, &sin].map(to_f64);
    let want = finite_differences(&x64, |x| dot(&reference(x, &cos64, &sin64, 2, 8, 3), &dy64));
    assert_close("rope backward", values(&dx), &want, F32);
}

#[test]
fn what_is_not_rotated_stays() {
    let mut rng = Rng(3);
    let x = rng.tensor(&[4, 2 * 16], 1.0);
    let (cos, sin) = table(&[1, 2, 3, 4], 1e4, 4).unwrap();
    let mut out = x.clone();
    forward(&mut out, &cos, &sin, 2).unwrap();
    for (got, was) in values(&out).chunks(16).zip(values(&x).chunks(16)) {
        assert_eq!(got[4..], was[4..]);
        assert_ne!(got[..4], was[..4]);
    }
    let (cos, sin) = table(&[0; 4], 1e4, 16).unwrap();
    let mut out = x.clone();
    forward(&mut out, &cos, &sin, 2).unwrap();
    assert_eq!(values(&out), values(&x), "position 0 turns nothing");
}

#[test]
fn the_table_rounds_where_transformers_does() {
    for theta in [1e4f32, 1e5, 273_768.0, 1e6] {
        for rotated in [2usize, 16, 64, 72] {
            let positions = [0u32, 1, 2, 1023, 8191, 131_071];
            let (cos, sin) = table(&positions, theta, rotated).unwrap();
            assert_eq!(cos.shape(), [positions.len(), rotated / 2]);
            for (t, &position) in positions.iter().enumerate() {
                for i in 0..rotated / 2 {
                    // f32 at each step: the exponent, the power, its inverse, the angle.
                    let exponent = (2 * i) as f32 / rotated as f32;
                    let power = f64::from(theta).powf(f64::from(exponent)) as f32;
                    let angle = f64::from(position as f32 * (1.0 / power));
                    let at = t * (rotated / 2) + i;
                    assert_eq!(values(&cos)[at], angle.cos() as f32, "cos {position} {i} of {rotated}");
                    assert_eq!(values(&sin)[at], angle.sin() as f32, "sin {position} {i} of {rotated}");
                }
            }
        }
    }
}

#[test]
fn other_shapes_are_refused() {
    let (cos, sin) = table(&[1, 2], 1e4, 8).unwrap();
    let short = Tensor::zeros(&[1, 4]);
    assert_op_error(table(&[1], 1e4, 3), "rope", "3");
    assert_op_error(forward(&mut Tensor::zeros(&[3, 16]), &cos, &sin, 2), "rope", "cos [3, 4]");
    assert_op_error(forward(&mut Tensor::zeros(&[2, 16]), &cos, &short, 2), "rope", "sin [2, 4]");
    assert_op_error(forward(&mut Tensor::zeros(&[2, 16]), &cos, &sin, 3), "rope", "3 heads");
    assert_op_error(forward(&mut Tensor::zeros(&[2, 16]), &cos, &sin, 0), "rope", "0 heads");
    assert_op_error(backward(&mut Tensor::zeros(&[2, 12]), &cos, &sin, 2), "rope", "[2, 12]");
}

#[test]
fn same_bits_on_any_pool() {
    let mut rng = Rng(4);
    let positions: Vec<u32> = (0..701).collect();
    let (cos, sin) = table(&positions, 1e4, 16).unwrap();
    let x = rng.tensor(&[701, 80], 1.0);
    assert_same_on_any_pool("rope", || {
        let (mut out, mut dx) = (x.clone(), x.clone());
        forward(&mut out, &cos, &sin, 5).unwrap();
        backward(&mut dx, &cos, &sin, 5).unwrap();
        [values(&out), values(&dx)].concat()
    });
}

/// (cos, sin) of position * theta^(-exponent) in f64. Angles are products in f32, off by some 1e-7 of their size.
fn assert_angle(what: &str, got: (f32, f32), position: u32, theta: f64, exponent: f64) {
    let angle = f64::from(position) * theta.powf(-exponent);
    let tolerance = F32.abs + 2e-7 * angle;
    for (got, want) in [(got.0, angle.cos()), (got.1, angle.sin())] {
        assert!((f64::from(got) - want).abs() < tolerance, "{what}: {got}, expected {want}");
    }
}

#[test]
fn mrope_turns_each_section_by_its_own_position() {
    // Qwen2-VL's sections, and a narrow one of odd lengths.
    for (sections, rotated) in [([16, 24, 24], 128), ([1, 0, 4], 10)] {
        let positions = [[0, 0, 0], [3, 3, 3], [3, 4, 17], [900, 7, 0]];
        let (cos, sin) = table_mrope(&positions, sections, 1e6, rotated).unwrap();
        assert_eq!((cos.shape(), sin.shape()), (&[4, rotated / 2][..], &[4, rotated / 2][..]));
        for (token, position) in positions.iter().enumerate() {
            for i in 0..rotated / 2 {
                // transformers' apply_multimodal_rotary_pos_emb: dimension i has the angle of the axis whose section i is in.
                let axis = (0..3).find(|&axis| i < sections[..=axis].iter().sum()).unwrap();
                let at = token * rotated / 2 + i;
                let exponent = 2.0 * i as f64 / rotated as f64;
                let name = format!("{sections:?} token {token} dimension {i}");
                assert_angle(&name, (values(&cos)[at], values(&sin)[at]), position[axis], 1e6, exponent);
            }
        }
    }
    // Text has one position for all three: then it is the 1-D table.
    let same = table_mrope(&[[5; 3], [77; 3]], [16, 24, 24], 1e6, 128).unwrap();
    let plain = table(&[5, 77], 1e6, 128).unwrap();
    assert_eq!((values(&same.0), values(&same.1)), (values(&plain.0), values(&plain.1)));
}

#[test]
fn the_2d_table_has_rows_first_then_columns() {
    for head_size in [4, 12, 80] {
        let positions = [[0, 0], [0, 3], [5, 0], [31, 64]];
        let (cos, sin) = table_2d(&positions, 1e4, head_size).unwrap();
        assert_eq!(cos.shape(), [4, head_size / 2]);
        for (patch, position) in positions.iter().enumerate() {
            for (axis, &position) in position.iter().enumerate() {
                for i in 0..head_size / 4 {
                    // transformers' VisionRotaryEmbedding of dim = HS/2: theta^(-2i/dim).
                    let exponent = 2.0 * i as f64 / (head_size / 2) as f64;
                    let at = patch * head_size / 2 + axis * head_size / 4 + i;
                    let name = format!("head size {head_size} patch {patch} axis {axis} {i}");
                    assert_angle(&name, (values(&cos)[at], values(&sin)[at]), position, 1e4, exponent);
                }
            }
        }
    }
}

#[test]
fn other_tables_are_refused() {
    assert_op_error(table_mrope(&[], [16, 24, 23], 1e6, 128), "rope", "[16, 24, 23]");
    assert_op_error(table_mrope(&[], [65, 0, 0], 1e6, 128), "rope", "64 frequencies");
    assert_op_error(table_mrope(&[], [1, usize::MAX, 0], 1e6, 128), "rope", "64 frequencies");
    assert_op_error(table_mrope(&[], [1, 1, 1], 1e6, 7), "rope", "7");
    assert_op_error(table_2d(&[], 1e4, 6), "rope", "6");
    assert_eq!(table_2d(&[], 1e4, 8).unwrap().0.shape(), [0, 4]);
}

#[test]
fn a_pair_is_two_rotations() {
    let mut rng = Rng(5);
    let (cos, sin) = table(&[1, 2, 3], 1e4, 4).unwrap();
    let (q, k) = (rng.tensor(&[3, 3 * 6], 1.0), rng.tensor(&[3, 6], 1.0));
    let (mut q1, mut k1, mut q2, mut k2) = (q.clone(), k.clone(), q, k);
    forward_pair(&mut q1, &mut k1, &cos, &sin, [3, 1]).unwrap();
    forward(&mut q2, &cos, &sin, 3).unwrap();
    forward(&mut k2, &cos, &sin, 1).unwrap();
    assert_eq!((values(&q1), values(&k1)), (values(&q2), values(&k2)));
    assert_op_error(forward_pair(&mut q1, &mut k1, &cos, &sin, [3, 0]), "rope", "0 heads");
}

/// Columns of a matrix.
fn columns(x: &Tensor, from: usize, len: usize) -> Tensor {
    let rows = values(x).chunks(x.cols().max(1));
    let part = rows.flat_map(|row| row[from..from + len].to_vec()).collect();
    Tensor::from_vec(&[x.rows(), len], part).unwrap()
}

#[test]
fn split_is_columns_of_which_two_parts_turn() {
    let mut rng = Rng(7);
    for (t, heads, kv_heads, head_size, rotated) in
        [(1, 1, 1, 2, 2), (3, 3, 1, 10, 6), (5, 4, 2, 16, 16), (4, 2, 2, 6, 0), (0, 1, 1, 4, 4)]
    {
        let positions: Vec<u32> = (0..t).map(|_| rng.below(3000) as u32).collect();
        let (cos, sin) = table(&positions, 1e4, rotated).unwrap();
        let widths = [heads * head_size, kv_heads * head_size, kv_heads * head_size];
        let qkv = rng.tensor(&[t as usize, widths.iter().sum()], 1.0);
        let [mut q, mut k, mut v] = widths.map(|w| crate::common::poisoned(&[t as usize, w]));
        forward_split([&mut q, &mut k, &mut v], &qkv, &cos, &sin, [heads, kv_heads]).unwrap();
        let (mut want_q, mut want_k) = (columns(&qkv, 0, widths[0]), columns(&qkv, widths[0], widths[1]));
        forward_pair(&mut want_q, &mut want_k, &cos, &sin, [heads, kv_heads]).unwrap();
        assert_eq!(values(&q), values(&want_q));
        assert_eq!(values(&k), values(&want_k));
        assert_eq!(values(&v), values(&columns(&qkv, widths[0] + widths[1], widths[2])));

        let mut back = crate::common::poisoned(qkv.shape());
        backward_split(&mut back, [&mut q, &mut k, &mut v], &cos, &sin, [heads, kv_heads]).unwrap();
        assert_close("there and back", values(&back), &to_f64(&qkv), F32);
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let (cos, sin) = table(&[1, 2], 1e4, 4).unwrap();
    let zeros = |cols| Tensor::zeros(&[2, cols]);
    let run = |q, k, v, qkv| {
        forward_split([&mut zeros(q), &mut zeros(k), &mut zeros(v)], &zeros(qkv), &cos, &sin, [2, 1])
    };
    assert!(run(8, 4, 4, 16).is_ok());
    assert_op_error(run(8, 4, 4, 12), "rope", "qkv [2, 16]");
    assert_op_error(run(8, 8, 4, 16), "rope", "k [2, 4]");
    assert_op_error(run(8, 4, 8, 16), "rope", "v [2, 4]");
}
