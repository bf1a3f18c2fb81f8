//! Gather, splice and their gradients: copies are exact, sums have one order.
use mpa::error::Result;
use mpa::ops::embedding::{self, backward, splice_backward};
use mpa::tensor::{DType, Tensor};

use crate::common::*;

fn forward(out: &mut Tensor, ids: &[u32], table: &Tensor) -> Result<()> {
    embedding::forward(out, &ids.into(), table)
}

fn splice(out: &mut Tensor, features: &Tensor, positions: &[u32], sources: &[u32]) -> Result<()> {
    embedding::splice(out, features, &positions.into(), &sources.into())
}

#[test]
fn forward_gathers_rows_of_any_dtype() {
    let mut rng = Rng(51);
    let table = rng.tensor(&[7, 5], 3.0);
    let ids = [6, 0, 0, 3];
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let table = table.to_dtype(dtype).unwrap();
        let mut out = poisoned(&[4, 5]);
        forward(&mut out, &ids, &table).unwrap();
        let wide = table.to_f32().unwrap();
        for (t, &id) in ids.iter().enumerate() {
            assert_eq!(values(&out)[t * 5..][..5], values(&wide)[id as usize * 5..][..5]);
        }
    }
}

#[test]
fn backward_is_the_transpose_of_forward() {
    let mut rng = Rng(52);
    let (table, dy) = (rng.tensor(&[4, 3], 1.0), rng.tensor(&[5, 3], 1.0));
    let ids = [1, 3, 1, 1, 0];
    let mut dtable = Tensor::from_vec(&[4, 3], vec![1.0; 12]).unwrap();
    backward(&mut dtable, &ids, &dy).unwrap();
    let dyd = to_f64(&dy);
    let loss = |table: &[f64]| -> f64 {
        ids.iter().enumerate().map(|(t, &id)| dot(&table[id as usize * 3..][..3], &dyd[t * 3..][..3])).sum()
    };
    let want: Vec<f64> = finite_differences(&to_f64(&table), loss).iter().map(|g| g + 1.0).collect();
    assert_close("dtable", values(&dtable), &want, F32);
}

#[test]
fn splice_puts_features_at_positions_and_leaves_the_rest() {
    let mut rng = Rng(53);
    let (before, features) = (rng.tensor(&[6, 2], 1.0), rng.tensor(&[3, 2], 1.0));
    // Feature 2 is used twice, as two questions on one picture do; feature 1 is not used.
    let (positions, sources) = ([4, 1, 2], [2, 0, 2]);
    let mut out = before.clone();
    splice(&mut out, &features, &positions, &sources).unwrap();
    for row in 0..6 {
        let want = match positions.iter().position(|&p| p == row) {
            Some(i) => &values(&features)[sources[i] as usize * 2..][..2],
            None => &values(&before)[row as usize * 2..][..2],
        };
        assert_eq!(&values(&out)[row as usize * 2..][..2], want, "row {row}");
    }
}

#[test]
fn splice_backward_moves_the_gradient() {
    let mut rng = Rng(54);
    let (tokens, features, dy) =
        (rng.tensor(&[6, 2], 1.0), rng.tensor(&[3, 2], 1.0), rng.tensor(&[6, 2], 1.0));
    let (positions, sources) = ([4, 1, 2], [2, 0, 2]);
    let dyd = to_f64(&dy);
    let loss = |tokens: &[f64], features: &[f64]| {
        let mut out = tokens.to_vec();
        for (&p, &s) in positions.iter().zip(&sources) {
            for d in 0..2 {
                out[p as usize * 2 + d] = features[s as usize * 2 + d];
            }
        }
        dot(&out, &dyd)
    };
    let (td, fd) = (to_f64(&tokens), to_f64(&features));
    let mut dtokens = dy.clone();
    let mut dfeatures = Tensor::from_vec(&[3, 2], vec![1.0; 6]).unwrap();
    splice_backward(&mut dfeatures, &mut dtokens, &positions, &sources).unwrap();
    assert_close("dtokens", values(&dtokens), &finite_differences(&td, |t| loss(t, &fd)), F32);
    let want: Vec<f64> = finite_differences(&fd, |f| loss(&td, f)).iter().map(|g| g + 1.0).collect();
    assert_close("dfeatures", values(&dfeatures), &want, F32);
}

#[test]
fn empty() {
    let t = Tensor::zeros;
    forward(&mut t(&[0, 3]), &[], &t(&[4, 3])).unwrap();
    forward(&mut t(&[2, 0]), &[1, 0], &t(&[4, 0])).unwrap();
    backward(&mut t(&[4, 3]), &[], &t(&[0, 3])).unwrap();
    splice(&mut t(&[2, 3]), &t(&[0, 3]), &[], &[]).unwrap();
}

#[test]
fn wrong_indices_and_shapes_are_named() {
    let t = Tensor::zeros;
    assert_op_error(forward(&mut t(&[2, 3]), &[0, 4], &t(&[4, 3])), "embedding forward", "4 at 1");
    assert_op_error(forward(&mut t(&[3, 3]), &[0, 1], &t(&[4, 3])), "embedding forward", "[2, 3]");
    assert_op_error(backward(&mut t(&[4, 3]), &[9], &t(&[1, 3])), "embedding backward", "below 4");
    assert_op_error(backward(&mut t(&[4, 3]), &[1], &t(&[1, 2])), "embedding backward", "[1, 3]");
    let op = "embedding splice";
    assert_op_error(splice(&mut t(&[4, 3]), &t(&[2, 3]), &[4], &[0]), op, "positions below 4");
    assert_op_error(splice(&mut t(&[4, 3]), &t(&[2, 3]), &[0], &[2]), op, "sources below 2");
    assert_op_error(splice(&mut t(&[4, 3]), &t(&[2, 3]), &[0, 1], &[0]), op, "2 sources");
    assert_op_error(splice(&mut t(&[4, 3]), &t(&[2, 2]), &[0], &[0]), op, "features");
    let result = splice_backward(&mut t(&[2, 3]), &mut t(&[4, 3]), &[7], &[0]);
    assert_op_error(result, "embedding splice_backward", "positions");
}
