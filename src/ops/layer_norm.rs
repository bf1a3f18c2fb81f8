//! Layer norm (Ba et al. 2016): y = (x - mean) / sqrt(var + eps) * w + b over the last dimension.
//! With n = (x - mean) / sqrt(var + eps) and g = dy w: dx = (g - mean(g) - n mean(g n)) / sqrt(var + eps), dw = dy n, db = dy.
use super::expect_shape;
use super::pieces::{self, widened};
use super::vector_math::{sum, sum2, vectorised};
use crate::error::Result;
use crate::tensor::Tensor;

/// out, x [T, C]; weight, bias [C].
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<()> {
    let cols = x.cols();
    expect_shape("layer_norm", "out", out, x.shape())?;
    expect_shape("layer_norm", "weight", weight, &[cols])?;
    expect_shape("layer_norm", "bias", bias, &[cols])?;
    let (x, weight, bias) = (x.f32s()?, widened(weight), widened(bias));
    pieces::each(out.f32s_mut()?, pieces::whole_rows(cols), |start, out| {
        norm_rows(out, &x[start..start + out.len()], &weight, &bias, eps);
    });
    Ok(())
}

/// dx is overwritten; dweight and dbias (both or neither) are added to. Mean and variance are computed again from x.
pub fn backward(
    dx: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let cols = x.cols();
    expect_shape("layer_norm", "dx", dx, x.shape())?;
    expect_shape("layer_norm", "dy", dy, x.shape())?;
    expect_shape("layer_norm", "weight", weight, &[cols])?;
    let (dy, x, weight) = (dy.f32s()?, x.f32s()?, widened(weight));
    let size = pieces::whole_rows(cols);
    let Some((dweight, dbias)) = dparams else {
        pieces::each(dx.f32s_mut()?, size, |start, dx| {
            let piece = start..start + dx.len();
            input_gradient(dx, &dy[piece.clone()], &x[piece], &weight, eps);
        });
        return Ok(());
    };
    expect_shape("layer_norm", "dweight", dweight, &[cols])?;
    expect_shape("layer_norm", "dbias", dbias, &[cols])?;
    let (dweight, dbias) = (dweight.f32s_mut()?, dbias.f32s_mut()?);
    let mut sums = vec![0.0; 2 * cols];
    pieces::each_with_sums(dx.f32s_mut()?, size, &mut sums, |start, dx, sums| {
        let piece = start..start + dx.len();
        let (dy, x) = (&dy[piece.clone()], &x[piece]);
        let (dweight, dbias) = sums.split_at_mut(cols);
        parameter_gradients(dweight, dbias, dy, x, eps);
        input_gradient(dx, dy, x, &weight, eps);
    });
    for (to, from) in dweight.iter_mut().chain(dbias).zip(sums) {
        *to += from;
    }
    Ok(())
}

/// Mean and 1 / sqrt(var + eps) of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x, |x| x) / n;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

vectorised! {
    fn norm_rows(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let cols = weight.len().max(1);
        for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            let (mean, scale) = moments(x, eps);
            for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * scale * w + b;
            }
        }
    }
}

vectorised! {
    fn input_gradient(dx: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], eps: f32) {
        let cols = weight.len().max(1);
        let rows = dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols));
        for ((dx, dy), x) in rows {
            let (mean, scale) = moments(x, eps);
            // dx holds g until the two means over it are known.
            for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = dy * w;
            }
            let mean_g = sum(dx, |g| g) / cols as f32;
            let mean_gn = sum2(dx, x, |g, x| g * ((x - mean) * scale)) / cols as f32;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = scale * (*dx - mean_g - (x - mean) * scale * mean_gn);
            }
        }
    }
}

vectorised! {
    fn parameter_gradients(dweight: &mut [f32], dbias: &mut [f32], dy: &[f32], x: &[f32], eps: f32) {
        let cols = dweight.len().max(1);
        for (dy, x) in dy.chunks_exact(cols).zip(x.chunks_exact(cols)) {
            let (mean, scale) = moments(x, eps);
            for (((dw, db), &dy), &x) in dweight.iter_mut().zip(dbias.iter_mut()).zip(dy).zip(x) {
                *dw += dy * ((x - mean) * scale);
                *db += dy;
            }
        }
    }
}
