//! kernels/attention.cu: which kernel, and how many blocks.
use std::sync::Arc;

use super::super::{int, kernel_dtype};
use super::{Config, Spans};
use crate::error::{Error, Result};
use crate::tensor::{Arg, DType, Gpu, Launch, Ptr, Tensor};

const OP: &str = "attention forward";
const THREADS: u32 = 128;

/// The tile of a block of many queries, as the kernel named `entry` has it.
struct Tile {
    entry: String,
    queries: usize,
    shared: usize,
}

/// `qkv`: q, k, v; shapes and spans have been checked.
pub fn forward(
    gpu: &Arc<Gpu>,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    qkv: [&Tensor; 3],
    spans: &Spans,
    config: &Config,
) -> Result<()> {
    let [q, k, v] = qkv;
    let dtype = kernel_dtype(OP, &[out, q, k, v])?;
    if !(config.scale > 0.0 && config.scale.is_finite()) {
        return Err(Error::op(OP, "a finite scale above 0", config.scale.to_string()));
    }
    let lse = match lse {
        None => Ptr::NULL,
        Some(lse) if lse.dtype() == DType::F32 => lse.ptr_mut(gpu)?,
        Some(lse) => return Err(Error::op(OP, "lse in f32", lse.dtype().to_string())),
    };
    let [q, k, v] = [q.ptr(gpu)?, k.ptr(gpu)?, v.ptr(gpu)?];
    let tile = tile(dtype, config.head_size)?;
    let longest = spans.iter().map(|s| s.q_len).max().unwrap_or(0);
    let tiles = longest.div_ceil(tile.queries);
    let at = Launch { grid: [tiles * spans.len(), config.heads, 1], block: THREADS, shared: tile.shared };
    int(OP, at.grid[0])?;
    let args: [Arg; 12] = [
        out.ptr_mut(gpu)?.into(),
        lse.into(),
        q.into(),
        k.into(),
        v.into(),
        spans.ptr(gpu)?.into(),
        int(OP, tiles)?.into(),
        int(OP, config.heads)?.into(),
        int(OP, config.kv_heads)?.into(),
        int(OP, config.head_size)?.into(),
        config.scale.into(),
        i32::from(config.causal).into(),
    ];
    gpu.launch(&tile.entry, at, &args)
}

/// The least head size that there is a kernel for and that holds `head_size`.
fn fit(sizes: &[usize], head_size: usize, expected: &str) -> Result<usize> {
    let size = sizes.iter().copied().find(|&s| s >= head_size);
    size.ok_or_else(|| Error::op(OP, expected, head_size.to_string()))
}

fn tile(dtype: DType, head_size: usize) -> Result<Tile> {
    if dtype == DType::F32 {
        // attention_plain.cuh: the weights of 32 queries for 32 keys, with a gap after each 32.
        let size = fit(&[64, 128, 256], head_size, "a head size up to 256 in f32")?;
        return Ok(Tile {
            entry: format!("attention_forward_f32_hs{size}"),
            queries: 32,
            shared: 32 * 33 * 4,
        });
    }
    // attention_prefill.cuh: rows are copied in pieces of 16 bytes, which buffers (256-byte aligned) and such widths keep aligned.
    const EXPECTED: &str = "a head size up to 128 and a multiple of 8 in bf16";
    if !head_size.is_multiple_of(8) {
        return Err(Error::op(OP, EXPECTED, head_size.to_string()));
    }
    let size = fit(&[64, 72, 80, 96, 128], head_size, EXPECTED)?;
    let (queries, keys) = (128, if size > 96 { 32 } else { 64 });
    // The queries, and two tiles of keys and of values.
    let shared = (queries + 4 * keys) * size.next_multiple_of(16) * 2;
    Ok(Tile { entry: format!("attention_forward_bf16_hs{size}"), queries, shared })
}
