//! kernels/attention_backward.cu and attention_backward_hopper.cu: statistics of each query, then the gradients of keys and values, then those of queries.
use std::sync::Arc;

use super::super::{expect_f32, int, kernel_dtype};
use super::launch::{expect_scale, grid, hopper_size, kernel_size, map};
use super::{Config, Spans};
use crate::error::Result;
use crate::tensor::{Arg, DType, Gpu, Launch, Ptr, Tensor};

const OP: &str = "attention backward";
const THREADS: u32 = 128;
const HOPPER_THREADS: u32 = 384;
/// Rows and heads that a block computes the statistics of.
const PAIRS: usize = 16;

/// What a kernel is given, besides what `Config` says.
struct Call<'a> {
    gpu: &'a Arc<Gpu>,
    /// dout, q, k, v, and how many rows they have.
    inputs: [(Ptr, usize); 4],
    /// [NH, Tq, 2]: lse log2(e), rowsum(dout out).
    stats: Ptr,
    spans: &'a Spans,
    /// Tq.
    rows: usize,
    dtype: DType,
    /// The head size of the kernels that serve this one.
    size: usize,
    /// They are those for Hopper.
    hopper: bool,
    config: &'a Config,
}

/// A block's tile.
struct Tile {
    /// That it owns.
    rows: usize,
    /// Of the other side that come at a time.
    others: usize,
    shared: usize,
}

/// Shapes and spans have been checked. `gradients`: dq, dk, dv; `inputs`: dout, q, k, v, out.
pub fn backward(
    gpu: &Arc<Gpu>,
    gradients: [&mut Tensor; 3],
    inputs: [&Tensor; 5],
    lse: &Tensor,
    spans: &Spans,
    config: &Config,
) -> Result<()> {
    let [dq, dk, dv] = gradients;
    let [dout, q, k, v, out] = inputs;
    let dtype = kernel_dtype(OP, &[&*dq, &*dk, &*dv, dout, q, k, v, out])?;
    expect_scale(OP, config)?;
    expect_f32(OP, "lse", lse)?;
    let rows = q.rows();
    let hopper = if gpu.hopper() { hopper_size(dtype, config.head_size) } else { None };
    let size = hopper.map_or_else(|| kernel_size(OP, dtype, config.head_size), Ok)?;
    // On a device what is queued later runs later: memory that is freed here is not used again before that.
    let stats = gpu.alloc(rows * config.heads * 2 * size_of::<f32>())?;
    let inputs =
        [(dout.ptr(gpu)?, rows), (q.ptr(gpu)?, rows), (k.ptr(gpu)?, k.rows()), (v.ptr(gpu)?, k.rows())];
    let hopper = hopper.is_some();
    let call = Call { gpu, inputs, stats: stats.ptr(), spans, rows, dtype, size, hopper, config };
    statistics(&call, out.ptr(gpu)?, lse.ptr(gpu)?)?;
    keys(&call, dk, dv)?;
    queries(&call, dq.ptr_mut(gpu)?)
}

fn statistics(call: &Call, out: Ptr, lse: Ptr) -> Result<()> {
    let &Call { gpu, inputs, stats, rows, dtype, config, .. } = call;
    let grid = [(rows * config.heads).div_ceil(PAIRS), 1, 1];
    let mut args: Vec<Arg> = vec![stats.into(), inputs[0].0.into(), out.into(), lse.into()];
    for n in [rows, config.heads, config.head_size] {
        args.push(int(OP, n)?.into());
    }
    let entry = format!("attention_delta_backward_{dtype}");
    gpu.launch(&entry, Launch { grid, block: THREADS, shared: 0 }, &args)
}

/// A block has one query head. Where several share a key/value head each leaves its part in scratch, and a second launch adds them up.
fn keys(call: &Call, dk: &mut Tensor, dv: &mut Tensor) -> Result<()> {
    let &Call { gpu, spans, config, .. } = call;
    let longest = spans.iter().map(|s| s.k_len).max().unwrap_or(0);
    let (rows, group) = (dk.rows(), config.group());
    let (dk, dv) = (dk.ptr_mut(gpu)?, dv.ptr_mut(gpu)?);
    if group == 1 {
        return launch(call, "keys", &[dk, dv, Ptr::NULL, Ptr::NULL], longest);
    }
    let size = rows * config.q_width() * size_of::<f32>();
    let (dk_parts, dv_parts) = (gpu.alloc(size)?, gpu.alloc(size)?);
    launch(call, "keys", &[dk, dv, dk_parts.ptr(), dv_parts.ptr()], longest)?;

    let at = Launch { grid: [longest * spans.len(), 1, 1], block: THREADS, shared: 0 };
    int(OP, at.grid[0])?;
    let mut args: Vec<Arg> = [dk, dv, dk_parts.ptr(), dv_parts.ptr()].map(Arg::from).to_vec();
    args.push(spans.ptr(gpu)?.into());
    for n in [longest, config.kv_heads, group, config.head_size] {
        args.push(int(OP, n)?.into());
    }
    gpu.launch(&format!("attention_group_backward_{}", call.dtype), at, &args)
}

fn queries(call: &Call, dq: Ptr) -> Result<()> {
    let longest = call.spans.iter().map(|s| s.q_len).max().unwrap_or(0);
    launch(call, "queries", &[dq], longest)
}

/// The kernels whose blocks own tiles of `side`: keys or queries, at most `longest` of them in a span.
fn launch(call: &Call, side: &str, outputs: &[Ptr], longest: usize) -> Result<()> {
    let &Call { gpu, spans, dtype, size, config, .. } = call;
    let tile = if call.hopper { hopper_tile(side, size) } else { tile(side, dtype, size) };
    let grid = grid(OP, config, spans, longest.div_ceil(tile.rows))?;
    let mut args: Vec<Arg> = outputs.iter().copied().map(Arg::from).collect();
    args.extend(inputs(call, side, &tile)?);
    args.extend([Arg::from(call.stats), spans.ptr(gpu)?.into()]);
    for n in [call.rows, config.heads, config.kv_heads, config.head_size] {
        args.push(int(OP, n)?.into());
    }
    args.extend([Arg::from(config.scale), Arg::from(i32::from(config.causal))]);
    let (name, block) =
        if call.hopper { ("attention_hopper", HOPPER_THREADS) } else { ("attention", THREADS) };
    let entry = format!("{name}_{side}_backward_{dtype}_hs{size}");
    gpu.launch(&entry, Launch { grid, block, shared: tile.shared }, &args)
}

/// dout, q, k, v as the kernel of `side` takes them: addresses, or how to cut tiles out of them.
fn inputs(call: &Call, side: &str, tile: &Tile) -> Result<Vec<Arg>> {
    let Config { heads, kv_heads, head_size, .. } = *call.config;
    if !call.hopper {
        return Ok(call.inputs.map(|(ptr, _)| Arg::from(ptr)).to_vec());
    }
    let (of_queries, of_keys) = match side {
        "keys" => (tile.others, tile.rows),
        _ => (tile.rows, tile.others),
    };
    let sides = [(heads, of_queries), (heads, of_queries), (kv_heads, of_keys), (kv_heads, of_keys)];
    let map = |(input, (heads, rows))| call.gpu.tensor_map(&map(input, heads, head_size, call.size, rows));
    call.inputs.into_iter().zip(sides).map(map).collect()
}

/// attention_backward_hopper.cuh, Plan: owned rows of two inputs; the stages of the ring, each with the statistics of queries that come by;
/// two mbarriers and two of each stage.
fn hopper_tile(side: &str, size: usize) -> Tile {
    let rows = 128;
    let (others, stages, stats) = if side == "keys" { (64, 3, 2 * 64) } else { (128, 2, 0) };
    let of_stage = 2 * others * size * 2 + stats * size_of::<f32>() + 2 * 8;
    Tile { rows, others, shared: 2 * rows * size * 2 + stages * of_stage + 2 * 8 }
}

fn tile(side: &str, dtype: DType, size: usize) -> Tile {
    let keys = side == "keys";
    if dtype == DType::F32 {
        // attention_backward_plain.cuh: weights of 32 rows, with a gap after each 32; P and dS for keys.
        return Tile { rows: 32, others: 32, shared: if keys { 2 } else { 1 } * 32 * 33 * size_of::<f32>() };
    }
    // attention_backward_tiles.cuh: four warps, with one or two row tiles of 16.
    let rows = if keys && size > 64 { 64 } else { 128 };
    let columns = if keys && (65..=96).contains(&size) { 64 } else { 32 };
    // Owned rows, and two buffers of the other side's, of two inputs each; the statistics of queries, which come with them.
    let elements = 2 * (rows + 2 * columns) * size.next_multiple_of(16);
    let queries = if keys { 2 * columns } else { rows };
    Tile { rows, others: columns, shared: elements * 2 + queries * 2 * size_of::<f32>() }
}
