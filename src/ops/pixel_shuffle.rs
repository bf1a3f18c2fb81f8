//! Idefics3's pixel shuffle: s x s neighbouring patches become one token of s*s*C features
//! (transformers, models/idefics3/modeling_idefics3.py, Idefics3Connector.pixel_shuffle).
//! out[n, (i, j), (di, dj, c)] = x[n, (s i + di, s j + dj), c]
use std::sync::Arc;

use super::pieces;
use super::{expect_shape, int, kernel_dtype};
use crate::error::{Error, Result};
use crate::tensor::{Gpu, Launch, Tensor};

const OP: &str = "pixel_shuffle";

/// The sizes of one call: a picture is grid x grid patches of `cols` features.
#[derive(Clone, Copy)]
struct Sizes {
    grid: usize,
    cols: usize,
    factor: usize,
}

/// out [N, P/(s*s), C*s*s], x [N, P, C], P a square number whose root `factor` (= s) divides.
pub fn forward(out: &mut Tensor, x: &Tensor, factor: usize) -> Result<()> {
    let sizes = check(out, x, factor)?;
    let (token, run) = (factor * factor * sizes.cols, factor * sizes.cols);
    if x.is_empty() {
        return Ok(());
    }
    if let Some(gpu) = x.gpu() {
        return launch(gpu, "forward", out, x, sizes);
    }
    let x = x.f32s()?;
    pieces::each(out.f32s_mut()?, pieces::whole_rows(token), |start, out| {
        for (i, to) in out.chunks_exact_mut(run).enumerate() {
            let from = source(start / run + i, sizes) * sizes.cols;
            to.copy_from_slice(&x[from..from + run]);
        }
    });
    Ok(())
}

/// kernels/pixel_shuffle.cu
fn launch(gpu: &Arc<Gpu>, direction: &str, to: &mut Tensor, from: &Tensor, sizes: Sizes) -> Result<()> {
    /// Of a block, one warp each.
    const RUNS: usize = 4;
    let dtype = kernel_dtype(OP, &[to, from])?;
    let Sizes { grid, cols, factor } = sizes;
    // The kernel counts patches, and the elements of a run, in 32 bits.
    int(OP, from.len() / cols)?;
    int(OP, factor * cols)?;
    let runs = from.len() / (factor * cols);
    let at = Launch { grid: [runs.div_ceil(RUNS), 1, 1], block: 32 * RUNS as u32, shared: 0 };
    let args = [
        to.ptr_mut(gpu)?.into(),
        from.ptr(gpu)?.into(),
        int(OP, runs)?.into(),
        int(OP, grid)?.into(),
        int(OP, cols)?.into(),
        int(OP, factor)?.into(),
    ];
    gpu.launch(&format!("pixel_shuffle_{direction}_{dtype}"), at, &args)
}

/// dx [N, P, C] overwritten; dy [N, P/(s*s), C*s*s].
pub fn backward(dx: &mut Tensor, dy: &Tensor, factor: usize) -> Result<()> {
    let sizes = check(dy, dx, factor)?;
    let Sizes { grid, cols, .. } = sizes;
    if dx.is_empty() {
        return Ok(());
    }
    if let Some(gpu) = dy.gpu() {
        return launch(gpu, "backward", dx, dy, sizes);
    }
    let dy = dy.f32s()?;
    // The runs of one band of `factor` grid rows are the runs of one row of tokens, so bands are independent.
    let (band, run) = (factor * grid * cols, factor * cols);
    pieces::each(dx.f32s_mut()?, pieces::whole_rows(band), |start, dx| {
        for i in 0..dx.len() / run {
            let from = start + i * run;
            let to = source(from / run, sizes) * cols - start;
            dx[to..to + run].copy_from_slice(&dy[from..from + run]);
        }
    });
    Ok(())
}

/// Where the `run`-th run of factor * C consecutive output elements comes from: the index of its first patch in x.
fn source(run: usize, Sizes { grid, factor, .. }: Sizes) -> usize {
    let across = grid / factor;
    let (token, di) = (run / factor, run % factor);
    // `down` counts the rows of tokens through all pictures, as grid rows of pictures follow one another without a gap.
    let (down, j) = (token / across, token % across);
    (down * factor + di) * grid + j * factor
}

/// `shuffled` and `plain` are the two sides of the op.
fn check(shuffled: &Tensor, plain: &Tensor, factor: usize) -> Result<Sizes> {
    let &[n, patches, cols] = plain.shape() else {
        return Err(Error::op(OP, "[N, P, C]", format!("{:?}", plain.shape())));
    };
    let grid = patches.isqrt();
    if factor == 0 || grid * grid != patches || !grid.is_multiple_of(factor) {
        return Err(Error::op(
            OP,
            format!("a square number of patches whose root {factor} divides"),
            format!("{:?}", plain.shape()),
        ));
    }
    let square = factor * factor;
    expect_shape(OP, "shuffled", shuffled, &[n, patches / square, cols * square])?;
    Ok(Sizes { grid, cols, factor })
}
