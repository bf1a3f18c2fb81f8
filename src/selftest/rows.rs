//! What only moves rows: embedding, splice, pixel_shuffle. The results are the same bits.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::{embedding, pixel_shuffle};
use crate::selftest::on::On;
use crate::tensor::Indices;

pub(super) fn cases(size: Size) -> Vec<Case> {
    let quick = size.quick();
    let mut cases = Vec::new();
    // Tokens, width, rows of the table.
    let tables: &[_] = &[(1, 1, 1), (5, 3, 7), (33, 960, 50), (1024, 960, 49280), (300, 1536, 151_936)];
    for &(tokens, width, vocabulary) in &tables[..if quick { 3 } else { tables.len() }] {
        let shape = format!("{tokens} of {vocabulary} x {width}");
        cases.push(Case::new("embedding", shape, move |on| embed(on, tokens, width, vocabulary)));
    }
    // Tokens, width, features, of which half take a place.
    let splices: &[_] = &[(4, 3, 2), (70, 960, 64), (2048, 960, 17 * 64), (1024, 3584, 900)];
    for &(tokens, width, features) in &splices[..if quick { 2 } else { splices.len() }] {
        let shape = format!("{features} into {tokens} x {width}");
        cases.push(Case::new("splice", shape, move |on| splice(on, tokens, width, features)));
    }
    // Pictures, side in patches, width, factor.
    let pictures: &[_] = &[(1, 2, 1, 2), (3, 6, 5, 3), (2, 8, 64, 4), (17, 32, 768, 4), (3, 32, 1152, 2)];
    for &(n, side, width, factor) in &pictures[..if quick { 3 } else { pictures.len() }] {
        let shape = format!("{n} x {} x {width} by {factor}", side * side);
        cases.push(Case::new("pixel_shuffle", shape, move |on| {
            let x = on.random(&[n, side * side, width], 1.0)?;
            let square = factor * factor;
            let mut out = on.output(&[n, side * side / square, width * square])?;
            pixel_shuffle::forward(&mut out, &x, factor)?;
            Output::one(out, Tolerance::exact("a copy"))
        }));
    }
    cases
}

fn embed(on: &mut On, tokens: usize, width: usize, vocabulary: usize) -> Result<Vec<Output>> {
    let table = on.random(&[vocabulary, width], 1.0)?;
    let mut ids = on.indices(tokens, vocabulary);
    // The first and the last row.
    ids[0] = 0;
    ids[tokens - 1] = vocabulary as u32 - 1;
    let mut out = on.output(&[tokens, width])?;
    embedding::forward(&mut out, &Indices::from(ids), &table)?;
    Output::one(out, Tolerance::exact("a copy"))
}

/// Every other feature goes to the last free place from the end.
fn splice(on: &mut On, tokens: usize, width: usize, features: usize) -> Result<Vec<Output>> {
    let (mut out, x) = (on.random(&[tokens, width], 1.0)?, on.random(&[features, width], 1.0)?);
    let sources: Indices = (0..features as u32).step_by(2).collect();
    let positions: Indices = (0..sources.len()).map(|i| (tokens - 1 - i) as u32).collect();
    embedding::splice(&mut out, &x, &positions, &sources)?;
    Output::one(out, Tolerance::exact("a copy"))
}
