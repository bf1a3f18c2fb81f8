//! The same tokens as on the CPU, which tests/ops/sample.rs tests. Sums are in f64 here and there but in another order, so a token could differ where the
//! uniform number falls within about 1e-13 of a token's edge. The data here are fixed and none does (where one falls on an edge, weights are whole
//! numbers and all sums exact), so nothing is left out of the comparison.
use mpa::ops::sample::{self, Draw, Sampling, draw_rows, log_probability_rows};
use mpa::tensor::{DType, Device, Indices, Tensor};

use crate::common::{Rng, assert_op_error};
use crate::device::{on_each_device, random};

/// Vocabularies: one, less than a warp, around a block's threads, around its threads' packs, aligned rows and others.
const WIDTHS: [usize; 8] = [1, 4, 97, 512, 1025, 2048, 4099, 9004];

fn upload(device: &Device, shape: &[usize], logits: Vec<f32>) -> Tensor {
    Tensor::from_vec(shape, logits).unwrap().to_device(device).unwrap()
}

fn drawing(temperature: f32, top_p: f32, uniform: f64) -> Draw {
    Draw { sampling: Sampling { temperature, top_p }, uniform }
}

fn greedy() -> Draw {
    drawing(0.0, 1.0, 0.5)
}

/// Panics unless the device draws what the CPU does.
#[track_caller]
fn assert_same_tokens(device: &Device, shape: [usize; 2], logits: Vec<f32>, rows: &[u32], draws: &[Draw]) {
    let want: Vec<u32> = rows
        .iter()
        .zip(draws)
        .map(|(&r, d)| {
            let row = &logits[r as usize * shape[1]..][..shape[1]];
            sample::draw(row, d.sampling, d.uniform).unwrap()
        })
        .collect();
    let got = draw_rows(&upload(device, &shape, logits), &rows.into(), draws).unwrap();
    assert_eq!(got, want, "{shape:?} rows {rows:?} {draws:?}");
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for cols in WIDTHS {
            let mut logits = rng.vec(3 * cols, 1e4);
            // Rows: the largest alone; twice, in different threads' shares; all equal but for the sign of zero.
            let (i, j) = (rng.below(cols), rng.below(cols));
            logits[cols + i] = f32::MAX;
            logits[cols + j] = f32::MAX;
            for (i, x) in logits[2 * cols..].iter_mut().enumerate() {
                *x = if i % 3 == 1 { 0.0 } else { -0.0 };
            }
            assert_same_tokens(device, [3, cols], logits, &[2, 0, 1, 0], &[greedy(); 4]);
        }
        let low = vec![f32::MIN, -1e38, -f32::MIN_POSITIVE, -1e-44];
        assert_same_tokens(device, [1, 4], low, &[0], &[greedy()]);
    });
}

#[test]
fn draws_are_those_of_the_cpu() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        let cases = [
            (1, 1.0, 0.9, 8.0),
            (97, 0.7, 0.9, 8.0),
            (1000, 1.0, 1.0, 5.0),
            (4099, 5.0, 0.999, 20.0),
            (4100, 1.0, 0.6, 20.0),
            (9004, 3.0, 1.0, 9.0),
        ];
        for (cols, temperature, top_p, scale) in cases {
            let logits = rng.vec(2 * cols, scale);
            let draws = [0, 1].map(|_| drawing(temperature, top_p, rng.uniform()));
            assert_same_tokens(device, [2, cols], logits, &[1, 0], &draws);
        }
    });
}

#[test]
fn ends_of_the_uniform_and_of_the_temperature() {
    on_each_device(|device| {
        let last = 1.0 - f64::EPSILON / 2.0;
        let logits = vec![-1e4, -2.0, 1.5, -1e4, 1.0, 0.5, -1e4];
        let draws = [
            // Tokens without any weight come first, last and between.
            drawing(1.0, 1.0, 0.0),
            drawing(1.0, 1.0, last),
            drawing(1.0, 0.7, 0.0),
            drawing(1.0, 0.7, last),
            drawing(1e-30, 1.0, last),
            drawing(1e-30, 0.5, last),
            // All weights are 1, so that ids alone rank them: 4 of 7 are kept.
            drawing(1e30, 0.5, 0.6),
            drawing(1e30, 1.0, 0.6),
        ];
        assert_same_tokens(device, [1, 7], logits, &[0; 8], &draws);
    });
}

#[test]
fn ties_go_to_the_lower_id_and_edges_to_the_next() {
    on_each_device(|device| {
        // Weights of 1: a uniform falls on the edge between two tokens, top_p on that of the nucleus, whose last half a token is then drawn.
        let draws = [drawing(1.0, 1.0, 0.625), drawing(1.0, 0.5, 0.75), drawing(1.0, 0.5, 0.875)];
        assert_same_tokens(device, [1, 8], vec![2.5; 8], &[0; 3], &draws);
        // 2050 of 4099 are kept, of several threads' shares; the 1026th is drawn.
        assert_same_tokens(device, [1, 4099], vec![-3.0; 4099], &[0], &[drawing(1.0, 0.5, 0.5)]);
    });
}

#[test]
fn many_rows_take_several_launches_and_share_logits() {
    on_each_device(|device| {
        let mut rng = Rng(5);
        let rows: Vec<u32> = (0..67).map(|i| i % 5).collect();
        let mut draws = vec![greedy(); 67];
        for i in [0, 63, 64, 66] {
            draws[i] = drawing(1.0, if i == 63 { 1.0 } else { 0.8 }, rng.uniform());
        }
        assert_same_tokens(device, [5, 33], rng.vec(5 * 33, 4.0), &rows, &draws);
    });
}

#[test]
fn log_probabilities_are_those_of_the_cpu() {
    on_each_device(|device| {
        let mut rng = Rng(6);
        for cols in WIDTHS {
            for scale in [1e-3, 10.0, 1e4] {
                let logits = rng.vec(2 * cols, scale);
                let tokens = [rng.below(cols) as u32, cols as u32 - 1];
                let got = log_probability_rows(
                    &upload(device, &[2, cols], logits.clone()),
                    &Indices::from(&tokens[..]),
                )
                .unwrap();
                for (r, (got, &token)) in got.iter().zip(&tokens).enumerate() {
                    let want = sample::log_probability(&logits[r * cols..][..cols], token).unwrap();
                    // A sum of up to 9004 doubles in another order.
                    let worst = 1e-12 + 1e-15 * want.abs();
                    assert!((got - want).abs() <= worst, "{cols} {scale}: {got}, expected {want}");
                }
            }
        }
    });
}

#[test]
fn a_logit_that_is_not_finite_is_named() {
    on_each_device(|device| {
        for cols in [5, 8] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut logits = vec![0.5; 2 * cols];
                logits[cols + 3] = bad;
                let logits = upload(device, &[2, cols], logits);
                let message = format!("{bad} at 3");
                for temperature in [0.0, 1.0] {
                    let draws = [drawing(temperature, 0.9, 0.0); 2];
                    let result = draw_rows(&logits, &vec![0, 1].into(), &draws);
                    assert_op_error(result, "sample draw", &message);
                }
                assert_eq!(draw_rows(&logits, &vec![0, 0].into(), &[greedy(); 2]).unwrap(), [0, 0]);
                let result = log_probability_rows(&logits, &vec![0, 0].into());
                assert_op_error(result, "sample log_probability", &message);
            }
        }
    });
}

#[test]
fn wrong_input_is_named() {
    on_each_device(|device| {
        let mut rng = Rng(7);
        let logits = random(&mut rng, device, DType::F32, &[2, 8], 1.0);
        let row: Indices = vec![0].into();
        for (d, part) in [
            (drawing(-1.0, 1.0, 0.0), "temperature"),
            (drawing(1.0, 1.5, 0.0), "top_p"),
            (drawing(1.0, 1.0, 1.0), "uniform"),
        ] {
            assert_op_error(draw_rows(&logits, &row, &[d]), "sample draw", part);
        }
        let op = "sample draw_rows";
        assert_op_error(draw_rows(&logits, &vec![2].into(), &[greedy()]), op, "rows below 2");
        assert_op_error(draw_rows(&logits, &row, &[greedy(); 2]), op, "1 draws");
        let op = "sample log_probability_rows";
        assert_op_error(log_probability_rows(&logits, &vec![0, 8].into()), op, "tokens below 8");
        assert_op_error(log_probability_rows(&logits, &row), op, "2 tokens");
        let narrow = random(&mut rng, device, DType::Bf16, &[1, 8], 1.0);
        assert_op_error(draw_rows(&narrow, &row, &[greedy()]), "sample draw_rows", "f32 logits");
        assert_op_error(log_probability_rows(&narrow, &row), op, "f32 logits");
        let empty = random(&mut rng, device, DType::F32, &[1, 0], 1.0);
        assert_op_error(draw_rows(&empty, &row, &[greedy()]), "sample draw_rows", "V above 0");
        assert!(draw_rows(&logits, &vec![].into(), &[]).unwrap().is_empty());
    });
}
