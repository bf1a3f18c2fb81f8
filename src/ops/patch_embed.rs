//! Vision patching: a convolution whose stride is its kernel, as a matrix product, plus bias and position embedding (ViT, Dosovitskiy 2020).
//! Pixels beyond the last whole patch are left out, as a convolution without padding does.
use super::add::add_to;
use super::expect_shape;
use super::matmul::{View, matmul};
use super::pieces::{self, PIECE, widened};
use super::vector_math::vectorised;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const OP: &str = "patch_embed";

/// The sizes of one call: N pictures of `height` x `width`, patches of `side`, C = `cols`.
#[derive(Clone, Copy)]
struct Sizes {
    pictures: usize,
    channels: usize,
    height: usize,
    width: usize,
    side: usize,
    cols: usize,
}

impl Sizes {
    fn new(pixels: &Tensor, weight: &Tensor) -> Result<Self> {
        let &[pictures, channels, height, width] = pixels.shape() else {
            return Err(Error::op(OP, "pixels [N, 3, H, W]", format!("{:?}", pixels.shape())));
        };
        let &[cols, _, side, _] = weight.shape() else {
            return Err(Error::op(OP, "weight [C, 3, S, S]", format!("{:?}", weight.shape())));
        };
        expect_shape(OP, "weight", weight, &[cols, channels, side, side])?;
        if side == 0 {
            return Err(Error::op(OP, "patches of at least one pixel", format!("{:?}", weight.shape())));
        }
        Ok(Sizes { pictures, channels, height, width, side, cols })
    }

    /// P
    fn patches(self) -> usize {
        (self.height / self.side) * (self.width / self.side)
    }

    /// 3*S*S
    fn patch_len(self) -> usize {
        self.channels * self.side * self.side
    }
}

/// out [N, P, C] ; pixels [N, 3, H, W]; weight [C, 3, S, S]; bias [C]; position [P, C], P = (H/S)*(W/S) in row-major order.
/// patches [N*P, 3*S*S] is scratch, kept for the backward.
pub fn forward(
    out: &mut Tensor,
    patches: &mut Tensor,
    pixels: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    position: &Tensor,
) -> Result<()> {
    let sizes = Sizes::new(pixels, weight)?;
    let (p, k, cols) = (sizes.patches(), sizes.patch_len(), sizes.cols);
    let rows = sizes.pictures * p;
    expect_shape(OP, "out", out, &[sizes.pictures, p, cols])?;
    expect_shape(OP, "patches", patches, &[rows, k])?;
    expect_shape(OP, "bias", bias, &[cols])?;
    expect_shape(OP, "position", position, &[p, cols])?;
    if out.is_empty() {
        return Ok(());
    }
    let (out, patches, pixels) = (out.f32s_mut()?, patches.f32s_mut()?, pixels.f32s()?);
    let (weight, bias, position) = (widened(weight)?, widened(bias)?, widened(position)?);
    pieces::each(patches, pieces::whole_rows(k), |start, patches| {
        for (i, patch) in patches.chunks_exact_mut(k.max(1)).enumerate() {
            cut(patch, pixels, start / k + i, sizes);
        }
    });
    pieces::each(out, pieces::whole_rows(cols), |start, out| {
        for (i, row) in out.chunks_exact_mut(cols).enumerate() {
            let at = (start / cols + i) % p * cols;
            add_rows(row, &position[at..at + cols], &bias);
        }
    });
    let (a, b) = (View { data: patches, rs: k, cs: 1 }, View { data: &weight, rs: 1, cs: k });
    matmul(rows, cols, k, out, cols, 1.0, a, b, true);
    Ok(())
}

/// Copies the `index`-th patch of all pictures out of the pixels, in the weight's order (channel, row, column).
fn cut(patch: &mut [f32], pixels: &[f32], index: usize, s: Sizes) {
    let (picture, within) = (index / s.patches(), index % s.patches());
    let across = s.width / s.side;
    let (top, left) = (within / across * s.side, within % across * s.side);
    for (i, line) in patch.chunks_exact_mut(s.side).enumerate() {
        let (channel, y) = (i / s.side, top + i % s.side);
        let from = ((picture * s.channels + channel) * s.height + y) * s.width + left;
        line.copy_from_slice(&pixels[from..from + s.side]);
    }
}

/// dweight, dbias and dposition are added to (pixels need no gradient). dy [N, P, C].
pub fn backward(
    dweight: &mut Tensor,
    dbias: &mut Tensor,
    dposition: &mut Tensor,
    dy: &Tensor,
    patches: &Tensor,
) -> Result<()> {
    let &[n, p, cols] = dy.shape() else {
        return Err(Error::op(OP, "dy [N, P, C]", format!("{:?}", dy.shape())));
    };
    let &[rows, k] = patches.shape() else {
        return Err(Error::op(OP, "patches [N*P, 3*S*S]", format!("{:?}", patches.shape())));
    };
    expect_shape(OP, "patches", patches, &[n * p, k])?;
    expect_shape(OP, "dbias", dbias, &[cols])?;
    expect_shape(OP, "dposition", dposition, &[p, cols])?;
    if dweight.shape().first() != Some(&cols) || dweight.len() != cols * k {
        let expected = format!("dweight [{cols}, 3, S, S] with 3*S*S = {k}");
        return Err(Error::op(OP, expected, format!("{:?}", dweight.shape())));
    }
    if dy.is_empty() {
        return Ok(());
    }
    let (dy, patches) = (dy.f32s()?, patches.f32s()?);
    let (a, b) = (View { data: dy, rs: 1, cs: cols }, View { data: patches, rs: k, cs: 1 });
    matmul(cols, k, rows, dweight.f32s_mut()?, k, 1.0, a, b, true);
    // Over the pictures first, then over the patches: both gradients from one reading of dy.
    let mut sums = vec![0.0; p * cols];
    pieces::each(&mut sums, PIECE, |start, sums| {
        for picture in dy.chunks_exact(p * cols) {
            add_to(sums, &picture[start..start + sums.len()]);
        }
    });
    add_to(dposition.f32s_mut()?, &sums);
    let dbias = dbias.f32s_mut()?;
    for row in sums.chunks_exact(cols) {
        add_to(dbias, row);
    }
    Ok(())
}

vectorised! {
    fn add_rows(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}
