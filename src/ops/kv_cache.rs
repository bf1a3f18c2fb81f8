//! Keys and values of sequences that are being written, in pages: a sequence takes a page when it needs one and gives it back at its end,
//! and sequences that begin alike share theirs (Kwon et al. 2023). What is read back: attention/paged.rs.
//! In int8 each row of a head has a scale of its own, as in ops/quantize: half the bytes of bf16, and an error of at most half a level.
mod launch;

use serde::{Deserialize, Serialize};

use super::attention::Config;
use super::embedding::expect_below;
use super::{expect_shape, quantize};
use crate::error::{Error, Result};
use crate::tensor::{DType, Indices, Tensor};

/// Rows of a page.
pub const PAGE: usize = 128;

/// How rows are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PageType {
    /// As the activations are: bf16 or f32 on a GPU, f32 in main memory.
    #[default]
    Float,
    /// A scale (f32) for each row and key/value head: its largest magnitude / 127; ties to even.
    Int8,
}

impl PageType {
    pub fn is_float(&self) -> bool {
        *self == PageType::Float
    }

    /// Bytes of a row of keys (or values) whose activations have `dtype`.
    pub fn row_bytes(self, dtype: DType, kv_heads: usize, head_size: usize) -> usize {
        match self {
            PageType::Float => kv_heads * head_size * dtype.size(),
            PageType::Int8 => kv_heads * (head_size + size_of::<f32>()),
        }
    }
}

/// Keys, or values, of one layer: [pages * PAGE, NKV*HS]. A row holds anything until it is stored.
pub struct Pages {
    rows: Tensor,
    /// [pages * PAGE, NKV] in f32, if the rows are int8.
    scales: Option<Tensor>,
    kv_heads: usize,
    head_size: usize,
}

impl Pages {
    /// `like`: any tensor of the activations' device and type. In main memory the system gives the bytes when they are first written.
    pub fn new(
        like: &Tensor,
        pages: usize,
        kv_heads: usize,
        head_size: usize,
        kind: PageType,
    ) -> Result<Pages> {
        let count = pages * PAGE;
        let shape = [count, kv_heads * head_size];
        let floats = |shape: &[usize], dtype| match (like.gpu(), dtype) {
            (None, _) => Ok(Tensor::zeros_fresh(shape)),
            (_, DType::F32) => like.like_f32(shape),
            _ => like.like(shape),
        };
        let (rows, scales) = match kind {
            PageType::Float => (floats(&shape, like.dtype())?, None),
            PageType::Int8 => (like.like_i8(&shape)?, Some(floats(&[count, kv_heads], DType::F32)?)),
        };
        Ok(Pages { rows, scales, kv_heads, head_size })
    }

    pub fn kind(&self) -> PageType {
        if self.scales.is_some() { PageType::Int8 } else { PageType::Float }
    }

    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// Copies rows `from` .. `from + len` to row `to` on, which must not overlap.
    pub fn copy_rows(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.rows.copy_rows(from, to, len)?;
        self.scales.as_mut().map_or(Ok(()), |scales| scales.copy_rows(from, to, len))
    }

    /// The rows, and of int8 the scales: what kernels read.
    pub(super) fn stored(&self) -> (&Tensor, Option<&Tensor>) {
        (&self.rows, self.scales.as_ref())
    }

    /// `Ok` if these are keys, or values, of heads as `config` has them.
    pub(super) fn expect(&self, op: &'static str, name: &str, config: &Config) -> Result<()> {
        if (self.kv_heads, self.head_size) == (config.kv_heads, config.head_size) {
            return Ok(());
        }
        let heads = |n: usize, size: usize| format!("{n} heads of {size}");
        let expected = format!("{name} of {}", heads(config.kv_heads, config.head_size));
        Err(Error::op(op, expected, heads(self.kv_heads, self.head_size)))
    }

    /// Rows `start` .. `start + n` of one head in f32, if they are in main memory: the elements, and from where to where a row is.
    /// `wide` is room for int8 to become f32.
    pub(super) fn block<'a>(
        &'a self,
        wide: &'a mut Vec<f32>,
        start: usize,
        n: usize,
        kv_head: usize,
    ) -> Result<(&'a [f32], usize)> {
        let (hs, width) = (self.head_size, self.rows.cols());
        let offset = start * width + kv_head * hs;
        let Some(scales) = &self.scales else { return Ok((&self.rows.f32s()?[offset..], width)) };
        let scales = scales.f32s()?[start * self.kv_heads + kv_head..].iter().step_by(self.kv_heads);
        let rows = self.rows.i8s()?[offset..].chunks(width);
        wide.clear();
        for (row, scale) in rows.zip(scales).take(n) {
            wide.extend(row[..hs].iter().map(|&x| f32::from(x) * scale));
        }
        Ok((wide, hs))
    }
}

/// Row t of x [T, NKV*HS] goes to row rows[t] of the pages, in int8 if they are.
/// No row comes twice: which one would stay is open on a GPU.
pub fn store(pages: &mut Pages, x: &Tensor, rows: &Indices) -> Result<()> {
    const OP: &str = "kv_cache store";
    let width = pages.rows.cols();
    expect_shape(OP, "x", x, &[rows.len(), width])?;
    expect_below(OP, "rows", rows, pages.rows())?;
    if let Some(gpu) = x.gpu() {
        return launch::store(gpu, pages, x, rows);
    }
    let (x, heads, hs) = (x.f32s()?, pages.kv_heads, pages.head_size);
    let Some(scales) = &mut pages.scales else {
        let to = pages.rows.f32s_mut()?;
        for (x, &row) in x.chunks_exact(width.max(1)).zip(rows.iter()) {
            to[row as usize * width..][..width].copy_from_slice(x);
        }
        return Ok(());
    };
    let (to, scales) = (pages.rows.i8s_mut()?, scales.f32s_mut()?);
    for (x, &row) in x.chunks_exact(width.max(1)).zip(rows.iter()) {
        let to = to[row as usize * width..][..width].chunks_exact_mut(hs);
        let scales = &mut scales[row as usize * heads..][..heads];
        for ((x, to), scale) in x.chunks_exact(hs).zip(to).zip(scales) {
            *scale = quantize::row(to, x);
        }
    }
    Ok(())
}

/// Page list[i], as floats again, goes to rows PAGE i .. PAGE (i + 1) of out [list * PAGE, NKV*HS].
pub fn gather(out: &mut Tensor, pages: &Pages, list: &Indices) -> Result<()> {
    const OP: &str = "kv_cache gather";
    let width = pages.rows.cols();
    expect_shape(OP, "out", out, &[list.len() * PAGE, width])?;
    expect_below(OP, "pages", list, pages.rows() / PAGE)?;
    if let Some(gpu) = out.gpu().cloned() {
        return launch::gather(&gpu, out, pages, list);
    }
    let (out, hs) = (out.f32s_mut()?, pages.head_size.max(1));
    for (&page, out) in list.iter().zip(out.chunks_exact_mut((PAGE * width).max(1))) {
        let first = page as usize * PAGE;
        let Some(scales) = &pages.scales else {
            out.copy_from_slice(&pages.rows.f32s()?[first * width..][..PAGE * width]);
            continue;
        };
        let heads = pages.rows.i8s()?[first * width..].chunks_exact(hs);
        let scales = &scales.f32s()?[first * pages.kv_heads..];
        for ((out, q), scale) in out.chunks_exact_mut(hs).zip(heads).zip(scales) {
            out.iter_mut().zip(q).for_each(|(out, &q)| *out = f32::from(q) * scale);
        }
    }
    Ok(())
}
