//! Copies are exact, sums are compared with float64.
use mpa::ops::embedding::{backward, forward, splice, splice_backward};
use mpa::tensor::{DType, Indices, Tensor};

use crate::common::{Rng, assert_close, assert_op_error, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

/// Rows that are copied, rows of the table or features, columns: one of each, odd ones, less than a warp's packs, more than one round of them, rows that
/// do not fill a block.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (5, 7, 3), (3, 2, 8), (9, 4, 64), (6, 11, 100), (3, 5, 576), (5, 2, 961)];

/// Row `i` of a matrix in main memory.
fn row(x: &[f32], i: u32, cols: usize) -> &[f32] {
    &x[i as usize * cols..][..cols]
}

fn indices(rng: &mut Rng, n: usize, below: usize) -> Indices {
    // The last row is always among them.
    (0..n).map(|i| if i == n / 2 { below - 1 } else { rng.below(below) } as u32).collect()
}

#[test]
fn forward_gathers_rows() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for (rows, of, cols) in SHAPES {
            for dtype in DTYPES {
                let table = random(&mut rng, device, dtype, &[of, cols], 1e4);
                let ids = indices(&mut rng, rows, of);
                let mut out = output(&table, &[rows, cols]);
                forward(&mut out, &ids, &table).unwrap();
                let name = what(&[&"embedding", &rows, &"of", &of, &"x", &cols, &dtype]);
                let (out, table) = (values(&out), values(&table));
                for (i, &id) in ids.iter().enumerate() {
                    assert_eq!(row(&out, i as u32, cols), row(&table, id, cols), "{name} row {i}");
                }
            }
        }
    });
}

#[test]
fn splice_puts_rows_at_positions_and_leaves_the_rest() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        for (rows, of, cols) in SHAPES {
            for dtype in DTYPES {
                let features = random(&mut rng, device, dtype, &[of, cols], 1e4);
                let before = random(&mut rng, device, dtype, &[2 * rows, cols], 1.0);
                // Every second row, the last one first.
                let positions: Indices = (0..rows as u32).rev().map(|i| 2 * i + 1).collect();
                let sources = indices(&mut rng, rows, of);
                let mut out = before.clone();
                splice(&mut out, &features, &positions, &sources).unwrap();
                let name = what(&[&"splice", &rows, &"of", &of, &"x", &cols, &dtype]);
                let (out, before, features) = (values(&out), values(&before), values(&features));
                for (&position, &source) in positions.iter().zip(sources.iter()) {
                    let got = row(&out, position, cols);
                    assert_eq!(got, row(&features, source, cols), "{name} row {position}");
                    let above = position - 1;
                    assert_eq!(row(&out, above, cols), row(&before, above, cols), "{name} row {above}");
                }
            }
        }
    });
}

/// before[to[i]] += added[from[i]]
fn add_rows(before: &Tensor, to: &[u32], added: &Tensor, from: &[u32]) -> Vec<f64> {
    let cols = before.cols();
    let (mut out, added) = (to_f64(before), to_f64(added));
    for (&to, &from) in to.iter().zip(from) {
        for c in 0..cols {
            out[to as usize * cols + c] += added[from as usize * cols + c];
        }
    }
    out
}

#[test]
fn backward_adds_the_rows_of_each_id() {
    on_each_device(|device| {
        let mut rng = Rng(5);
        // Few ids that come often, more than the warps of a block each; and all different.
        for (rows, of, cols) in SHAPES.into_iter().chain([(70, 3, 12), (40, 2, 33), (20, 400, 264)]) {
            for dtype in DTYPES {
                let dy = random(&mut rng, device, dtype, &[rows, cols], 1.0);
                let before = random(&mut rng, device, DType::F32, &[of, cols], 1.0);
                let ids = indices(&mut rng, rows, of);
                let mut dtable = before.clone();
                backward(&mut dtable, &ids, &dy).unwrap();
                let all: Vec<u32> = (0..rows as u32).collect();
                let want = add_rows(&before, &ids, &dy, &all);
                let name = what(&[&"embedding backward", &rows, &"of", &of, &"x", &cols, &dtype]);
                assert_close(&name, &values(&dtable), &want, rounded_sum(DType::F32, rows, 1.0));
                let mut again = before.clone();
                backward(&mut again, &ids, &dy).unwrap();
                assert_eq!(values(&again), values(&dtable), "{name} twice");
                // What no id names is as it was.
                let (got, before) = (values(&dtable), values(&before));
                for i in (0..of as u32).filter(|i| !ids.contains(i)) {
                    assert_eq!(row(&got, i, cols), row(&before, i, cols), "{name} row {i}");
                }
            }
        }
    });
}

#[test]
fn splice_backward_takes_the_gradient_to_the_features() {
    on_each_device(|device| {
        let mut rng = Rng(6);
        for (rows, of, cols) in SHAPES.into_iter().chain([(12, 3, 260)]) {
            for dtype in DTYPES {
                let before = random(&mut rng, device, dtype, &[of, cols], 1.0);
                let dy = random(&mut rng, device, dtype, &[2 * rows, cols], 1.0);
                // Every second row, the last one first.
                let positions: Vec<u32> = (0..rows as u32).rev().map(|i| 2 * i + 1).collect();
                let sources = indices(&mut rng, rows, of);
                let (mut dfeatures, mut left) = (before.clone(), dy.clone());
                splice_backward(&mut dfeatures, &mut left, &positions, &sources).unwrap();
                let name = what(&[&"splice backward", &rows, &"of", &of, &"x", &cols, &dtype]);
                let want = add_rows(&before, &sources, &dy, &positions);
                assert_close(&name, &values(&dfeatures), &want, rounded_sum(dtype, rows, 1.0));
                let (left, was) = (values(&left), values(&dy));
                for i in 0..2 * rows as u32 {
                    let want = if i % 2 == 1 { vec![0.0; cols] } else { row(&was, i, cols).to_vec() };
                    assert_eq!(row(&left, i, cols), want, "{name} row {i}");
                }
            }
        }
    });
}

#[test]
fn nothing_to_copy() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let mut on = |shape: &[usize]| random(&mut rng, device, DType::F32, shape, 1.0);
        let none: Indices = vec![].into();
        let one: Indices = vec![0].into();
        forward(&mut on(&[0, 3]), &none, &on(&[4, 3])).unwrap();
        forward(&mut on(&[1, 0]), &one, &on(&[4, 0])).unwrap();
        let mut out = on(&[2, 3]);
        let was = values(&out);
        splice(&mut out, &on(&[0, 3]), &none, &none).unwrap();
        backward(&mut out, &none, &on(&[0, 3])).unwrap();
        splice_backward(&mut on(&[0, 3]), &mut out, &none, &none).unwrap();
        assert_eq!(values(&out), was);
    });
}

#[test]
fn wrong_indices_and_types_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(4);
        let mut on = |dtype, shape: &[usize]| random(&mut rng, device, dtype, shape, 1.0);
        let (table, narrow) = (on(DType::F32, &[4, 3]), on(DType::Bf16, &[4, 3]));
        let list = |ids: &[u32]| -> Indices { ids.into() };
        let mut out = output(&table, &[2, 3]);
        assert_op_error(forward(&mut out, &list(&[0, 4]), &table), "embedding forward", "4 at 1");
        assert_op_error(
            forward(&mut out, &list(&[0, 1]), &narrow),
            "embedding forward",
            "all f32 or all bf16",
        );
        assert_op_error(
            forward(&mut Tensor::zeros(&[2, 3]), &list(&[0, 1]), &table),
            "tensor",
            "host-executed",
        );
        let back = backward(&mut output(&narrow, &[4, 3]), &[0], &output(&narrow, &[1, 3]));
        assert_op_error(back, "embedding backward", "in f32");
        let back = backward(&mut Tensor::zeros(&[4, 3]), &[0], &output(&narrow, &[1, 3]));
        assert_op_error(back, "tensor", "host-executed");
        let mut back = |dfeatures: &Tensor, at: &[u32]| {
            splice_backward(&mut dfeatures.clone(), &mut out, at, &vec![0; at.len()])
        };
        assert_op_error(back(&narrow, &[0]), "embedding splice_backward", "all f32 or all bf16");
        assert_op_error(back(&table, &[1, 1]), "embedding splice_backward", "1 twice");
        let mut splice =
            |features: &Tensor, at: &[u32], from: &[u32]| splice(&mut out, features, &list(at), &list(from));
        let op = "embedding splice";
        assert_op_error(splice(&table, &[2], &[0]), op, "positions below 2");
        assert_op_error(splice(&table, &[1], &[4]), op, "sources below 4");
        assert_op_error(splice(&table, &[1, 0, 1], &[0, 1, 2]), op, "1 twice");
        assert_op_error(splice(&narrow, &[0], &[0]), op, "all f32 or all bf16");
    });
}
