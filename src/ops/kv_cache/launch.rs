//! kernels/kv_cache.cu.
use std::sync::Arc;

use super::super::{int, kernel_dtype};
use super::Pages;
use crate::error::Result;
use crate::tensor::{Arg, DType, Gpu, Indices, Launch, Tensor};

/// Warps of a block, each with a row, or with a head of an int8 row.
const WARPS: usize = 4;

/// Shapes and rows have been checked.
pub(super) fn store(gpu: &Arc<Gpu>, pages: &mut Pages, x: &Tensor, rows: &Indices) -> Result<()> {
    const OP: &str = "kv_cache store";
    let (heads, head_size) = (pages.kv_heads, pages.head_size);
    let (kind, dtype, mut args) = match &mut pages.scales {
        None => ("store", kernel_dtype(OP, &[&pages.rows, x])?, vec![pages.rows.ptr_mut(gpu)?.into()]),
        Some(scales) => {
            let args = vec![pages.rows.ptr_mut(gpu)?.into(), scales.ptr_mut(gpu)?.into()];
            ("store_int8", kernel_dtype(OP, &[x])?, args)
        }
    };
    args.extend([Arg::from(x.ptr(gpu)?), Arg::from(rows.ptr(gpu)?)]);
    launch(gpu, (kind, dtype), args, rows.len(), [heads, head_size])
}

/// Shapes and entries have been checked.
pub(super) fn gather(gpu: &Arc<Gpu>, out: &mut Tensor, pages: &Pages, list: &Indices) -> Result<()> {
    const OP: &str = "kv_cache gather";
    let (rows, scales) = pages.stored();
    let mut args: Vec<Arg> = vec![out.ptr_mut(gpu)?.into(), rows.ptr(gpu)?.into()];
    let (kind, dtype) = match scales {
        None => ("gather", kernel_dtype(OP, &[out, rows])?),
        Some(scales) => {
            args.push(scales.ptr(gpu)?.into());
            ("gather_int8", kernel_dtype(OP, &[out])?)
        }
    };
    args.push(list.ptr(gpu)?.into());
    launch(gpu, (kind, dtype), args, out.rows(), [pages.kv_heads, pages.head_size])
}

/// A kernel over `rows` rows, or over their heads if it is one for int8.
fn launch(
    gpu: &Arc<Gpu>,
    (kind, dtype): (&str, DType),
    mut args: Vec<Arg>,
    rows: usize,
    [heads, head_size]: [usize; 2],
) -> Result<()> {
    const OP: &str = "kv_cache";
    let (pieces, sizes) = match kind.ends_with("int8") {
        true => (rows * heads, vec![heads, head_size]),
        false => (rows, vec![heads * head_size]),
    };
    let count = int(OP, pieces)?;
    // What is gathered is whole blocks.
    if kind.starts_with("store") {
        args.push(count.into());
    }
    for size in sizes {
        args.push(int(OP, size)?.into());
    }
    let at = Launch { grid: [pieces.div_ceil(WARPS), 1, 1], block: 32 * WARPS as u32, shared: 0 };
    gpu.launch(&format!("kv_cache_{kind}_forward_{dtype}"), at, &args)
}
