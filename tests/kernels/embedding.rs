//! Copies are exact.
use mpa::ops::embedding::{forward, splice};
use mpa::tensor::{DType, Indices, Tensor};

use crate::common::{Rng, assert_op_error};
use crate::device::{DTYPES, on_each_device, output, random, values, what};

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
        let mut splice =
            |features: &Tensor, at: &[u32], from: &[u32]| splice(&mut out, features, &list(at), &list(from));
        let op = "embedding splice";
        assert_op_error(splice(&table, &[2], &[0]), op, "positions below 2");
        assert_op_error(splice(&table, &[1], &[4]), op, "sources below 4");
        assert_op_error(splice(&table, &[1, 0, 1], &[0, 1, 2]), op, "1 twice");
        assert_op_error(splice(&narrow, &[0], &[0]), op, "all f32 or all bf16");
    });
}
