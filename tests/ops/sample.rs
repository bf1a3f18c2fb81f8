//! Greedy and sampled choice: limits, ties, and the distribution itself.
use mpa::ops::sample::{Draw, Sampling, argmax, draw, draw_rows, log_probability, log_probability_rows};

use crate::common::*;

fn sampling(temperature: f32, top_p: f32) -> Sampling {
    Sampling { temperature, top_p }
}

#[test]
fn argmax_takes_the_first_of_equals() {
    assert_eq!(argmax(&[0.5, 2.0, -1.0, 2.0]).unwrap(), 1);
    assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]).unwrap(), 0);
    assert_eq!(argmax(&[-0.0, 0.0]).unwrap(), 0);
    assert_op_error(argmax(&[]), "sample argmax", "none");
    for nan_at in 0..3 {
        let mut logits = [3.0, 2.0, 1.0];
        logits[nan_at] = f32::NAN;
        assert_op_error(argmax(&logits), "sample argmax", &format!("NaN at {nan_at}"));
    }
}

#[test]
fn temperature_zero_is_greedy() {
    for uniform in [0.0, 0.3, 0.999_999] {
        assert_eq!(draw(&[0.5, 2.0, -1.0, 2.0], sampling(0.0, 0.1), uniform).unwrap(), 1);
    }
}

/// Share of each token over a fine grid of `uniform`: the distribution, without chance.
fn shares(logits: &[f32], sampling: Sampling) -> Vec<f64> {
    const GRID: usize = 20_000;
    let mut counts = vec![0.0; logits.len()];
    for i in 0..GRID {
        let uniform = (i as f64 + 0.5) / GRID as f64;
        counts[draw(logits, sampling, uniform).unwrap() as usize] += 1.0 / GRID as f64;
    }
    counts
}

#[test]
fn draws_follow_softmax_with_temperature() {
    let logits = [0.3f32, -1.0, 2.0, 0.3, 1.1];
    for temperature in [0.5, 1.0, 3.0] {
        let weights: Vec<f64> =
            logits.iter().map(|&x| (f64::from(x) / f64::from(temperature)).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (got, weight) in shares(&logits, sampling(temperature, 1.0)).iter().zip(&weights) {
            // A grid point more or less at each end of a token's interval.
            assert!((got - weight / total).abs() < 2.0 / 20_000.0, "{got}, expected {}", weight / total);
        }
    }
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    // Probabilities 0.1, 0.2, 0.4, 0.3.
    let logits = [0.1f32, 0.2, 0.4, 0.3].map(f32::ln);
    for (top_p, kept) in [(0.3, vec![2]), (0.39, vec![2]), (0.41, vec![2, 3]), (0.72, vec![1, 2, 3])] {
        let shares = shares(&logits, sampling(1.0, top_p));
        let mass: f64 = kept.iter().map(|&i: &usize| f64::from(logits[i]).exp()).sum();
        for (i, share) in shares.iter().enumerate() {
            let want = if kept.contains(&i) { f64::from(logits[i]).exp() / mass } else { 0.0 };
            assert!((share - want).abs() < 2.0 / 20_000.0, "token {i} at {top_p}: {share}, expected {want}");
        }
    }
}

#[test]
fn ties_at_the_edge_of_the_set_go_to_the_lower_id() {
    let shares = shares(&[1.0, 1.0, 1.0, 1.0, -9.0], sampling(1.0, 0.45));
    assert!((shares[0] - 0.5).abs() < 1e-3 && (shares[1] - 0.5).abs() < 1e-3);
    assert_eq!(shares[2..], [0.0; 3]);
}

#[test]
fn leaving_out_small_weights_before_sorting_changes_nothing() {
    let mut rng = Rng(61);
    for _ in 0..200 {
        let logits = rng.vec(300, 6.0);
        let top_p = 0.05 + 0.94 * rng.uniform();
        let uniform = rng.uniform();
        let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
        let mut ids: Vec<usize> = (0..300).collect();
        ids.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let count = ids
            .iter()
            .position(|&i| {
                sum += weights[i];
                sum >= f64::from(top_p as f32) * total
            })
            .unwrap();
        let mut left = uniform * sum;
        let want = ids[..=count]
            .iter()
            .find(|&&i| {
                left -= weights[i];
                left < 0.0
            })
            .unwrap();
        assert_eq!(draw(&logits, sampling(1.0, top_p as f32), uniform).unwrap() as usize, *want);
    }
}

#[test]
fn extreme_logits() {
    for uniform in [0.0, 0.5, 1.0 - f64::EPSILON] {
        for top_p in [0.5, 1.0] {
            let token = draw(&[1e4, -1e4, f32::MAX, 9999.0], sampling(1e-30, top_p), uniform).unwrap();
            assert_eq!(token, 2);
        }
    }
}

#[test]
fn wrong_input_is_named() {
    let op = "sample draw";
    assert_op_error(draw(&[1.0], sampling(-1.0, 1.0), 0.0), op, "temperature");
    assert_op_error(draw(&[1.0], sampling(f32::NAN, 1.0), 0.0), op, "temperature");
    for top_p in [0.0, -0.5, 1.01, f32::NAN] {
        assert_op_error(draw(&[1.0], sampling(1.0, top_p), 0.0), op, "top_p");
    }
    for uniform in [-0.1, 1.0, f64::NAN] {
        assert_op_error(draw(&[1.0], sampling(1.0, 1.0), uniform), op, "uniform");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for temperature in [0.0, 1.0] {
            assert_op_error(draw(&[0.0, bad], sampling(temperature, 1.0), 0.0), op, "at 1");
        }
        assert_op_error(log_probability(&[0.0, bad], 0), "sample log_probability", "at 1");
    }
    assert_op_error(draw(&[], sampling(1.0, 1.0), 0.0), op, "none");
    assert_op_error(log_probability(&[0.0], 1), "sample log_probability", "below 1");
}

#[test]
fn log_probabilities() {
    let mut rng = Rng(62);
    let logits = rng.vec(97, 10.0);
    let total: f64 = (0..97).map(|i| log_probability(&logits, i).unwrap().exp()).sum();
    assert!((total - 1.0).abs() < 1e-12);
    assert!((log_probability(&[0.0, 0.0], 1).unwrap() + std::f64::consts::LN_2).abs() < 1e-15);
    assert_eq!(log_probability(&[1e4, -1e4], 1).unwrap(), -2e4);
    assert_eq!(log_probability(&[1e4, -1e4], 0).unwrap(), 0.0);
}

#[test]
fn many_rows_are_each_row_by_itself() {
    let mut rng = Rng(63);
    let logits = rng.tensor(&[3, 11], 4.0);
    let row = |r: usize| &values(&logits)[r * 11..(r + 1) * 11];
    let rows = [2, 0, 2, 1];
    let draws: Vec<Draw> = [(1.0, 0.9), (0.0, 1.0), (2.0, 1.0), (1.0, 0.5)]
        .map(|(temperature, top_p)| Draw { sampling: sampling(temperature, top_p), uniform: rng.uniform() })
        .into();
    let got = draw_rows(&logits, &rows.map(|r| r as u32)[..].into(), &draws).unwrap();
    let want: Vec<u32> =
        rows.iter().zip(&draws).map(|(&r, d)| draw(row(r), d.sampling, d.uniform).unwrap()).collect();
    assert_eq!(got, want);
    let got = log_probability_rows(&logits, &vec![3, 0, 10].into()).unwrap();
    assert_eq!(got, [(0, 3), (1, 0), (2, 10)].map(|(r, token)| log_probability(row(r), token).unwrap()));

    let one = |row| draw_rows(&logits, &vec![row].into(), &draws[..1]);
    assert_op_error(one(3), "sample draw_rows", "rows below 3");
    assert_op_error(draw_rows(&logits, &vec![0].into(), &draws), "sample draw_rows", "1 draws");
    assert_op_error(
        log_probability_rows(&logits, &vec![0].into()),
        "sample log_probability_rows",
        "3 tokens",
    );
    assert_op_error(
        log_probability_rows(&logits, &vec![0, 11, 0].into()),
        "sample log_probability_rows",
        "11 at 1",
    );
}
