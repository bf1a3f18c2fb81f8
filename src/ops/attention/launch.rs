//! kernels/attention.cu and attention_hopper.cu: which kernel, and how many blocks. A span of one query has only its keys to be split by (decode), others are cut
//! into blocks of queries (prefill). That is for each span to say, not for the batch: so its bits do not depend on the others.
use std::sync::Arc;

use super::super::{expect_f32, int, kernel_dtype};
use super::{Config, Spans};
use crate::error::{Error, Result};
use crate::tensor::{Arg, DType, Gpu, Launch, Ptr, Tensor, TensorMap};

const OP: &str = "attention forward";
const THREADS: u32 = 128;
/// attention_decode.cuh: keys of a split, and the most query heads of a block.
const SPLIT: usize = 256;
const MOST_HEADS: usize = 8;

/// Keys up to which launches for a decode step over spans of at most `keys` serve a later step as well.
pub fn decode_reach(keys: usize) -> usize {
    keys.next_multiple_of(SPLIT)
}

/// What a kernel is given, besides what `Config` says.
pub(super) struct Call<'a> {
    pub gpu: &'a Arc<Gpu>,
    pub out: Ptr,
    pub lse: Ptr,
    /// And how many rows it has.
    pub q: (Ptr, usize),
    pub spans: &'a Spans,
    pub dtype: DType,
    pub config: &'a Config,
}

/// Where a decode kernel finds keys and values: its name up to the direction, and its arguments between those of q and spans.
pub(super) struct Keys {
    pub kernel: &'static str,
    pub args: Vec<Arg>,
    /// Launched as if a span had so many keys, if none has more.
    pub reach: usize,
}

/// The tile of a block of many queries, as the kernel named `entry` has it.
struct Tile {
    entry: String,
    threads: u32,
    queries: usize,
    shared: usize,
    /// Its head size, if it loads through tensor maps (attention_hopper.cu); `None`: it takes addresses.
    maps: Option<usize>,
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
    expect_scale(OP, config)?;
    let lse = match lse {
        None => Ptr::NULL,
        Some(lse) => {
            expect_f32(OP, "lse", lse)?;
            lse.ptr_mut(gpu)?
        }
    };
    let kv = [(k.ptr(gpu)?, k.rows()), (v.ptr(gpu)?, v.rows())];
    let call = Call { gpu, out: out.ptr_mut(gpu)?, lse, q: (q.ptr(gpu)?, q.rows()), spans, dtype, config };
    match decode_size(dtype, config.head_size) {
        None => prefill(&call, kv, 1),
        Some(size) => {
            let args = kv.map(|(ptr, _)| Arg::from(ptr)).to_vec();
            decode(&call, size, Keys { kernel: "attention_decode", args, reach: 0 })?;
            prefill(&call, kv, 2)
        }
    }
}

/// Spans of `least` queries or more. `kv`: keys and values, and how many rows they have.
pub(super) fn prefill(call: &Call, [k, v]: [(Ptr, usize); 2], least: usize) -> Result<()> {
    let Call { spans, config, .. } = call;
    let tile = match call.gpu.hopper() {
        true => hopper_tile(call.dtype, config.head_size),
        false => None,
    };
    let tile = tile.map_or_else(|| self::tile(call.dtype, config.head_size), Ok)?;
    let longest = spans.iter().map(|s| s.q_len).filter(|&n| n >= least).max().unwrap_or(0);
    if longest == 0 {
        return Ok(());
    }
    let grid = grid(OP, config, spans, longest.div_ceil(tile.queries))?;
    let at = Launch { grid, block: tile.threads, shared: tile.shared };
    let mut args: Vec<Arg> = vec![call.out.into(), call.lse.into()];
    for (input, heads) in [(call.q, config.heads), (k, config.kv_heads), (v, config.kv_heads)] {
        args.push(match tile.maps {
            Some(size) => call.gpu.tensor_map(&map(input, heads, config.head_size, size, 128))?,
            None => input.0.into(),
        });
    }
    args.push(call.spans.ptr(call.gpu)?.into());
    for n in [least, config.heads, config.kv_heads, config.head_size] {
        args.push(int(OP, n)?.into());
    }
    args.extend([Arg::from(config.scale), Arg::from(i32::from(config.causal))]);
    call.gpu.launch(&tile.entry, at, &args)
}

/// A block for each tile of each head of each span (attention_span.cuh); a span has `tiles` at most.
pub fn grid(op: &'static str, config: &Config, spans: &Spans, tiles: usize) -> Result<[usize; 3]> {
    const MOST: usize = 65_535;
    if tiles.max(spans.len()) > MOST {
        let got = format!("{} spans of up to {tiles} tiles", spans.len());
        return Err(Error::op(op, format!("at most {MOST} spans, of at most {MOST} tiles"), got));
    }
    Ok([config.heads, tiles, spans.len()])
}

/// Head size of the decode kernel that serves `head_size`: up to 128, rows in whole pieces of 16 bytes.
pub(super) fn decode_size(dtype: DType, head_size: usize) -> Option<usize> {
    let fits = head_size.is_multiple_of(16 / dtype.size());
    [64, 128].into_iter().find(|&size| fits && head_size <= size)
}

/// Spans of one query, which sees all keys, causal or not.
pub(super) fn decode(call: &Call, size: usize, keys: Keys) -> Result<()> {
    let Call { gpu, spans, config, dtype, .. } = call;
    let &&Config { heads, kv_heads, head_size, scale, .. } = config;
    let Some(longest) = spans.iter().filter(|s| s.q_len == 1).map(|s| s.k_len).max() else { return Ok(()) };
    let splits = longest.max(keys.reach).div_ceil(SPLIT);
    // Each split leaves its sums, the largest score and the sum of weights.
    let parts = gpu.alloc(spans.len() * heads * splits * (head_size + 2) * size_of::<f32>())?;
    let (at_spans, group) = (spans.ptr(gpu)?, heads / kv_heads);
    let shared = group.min(MOST_HEADS) * (5 * head_size + SPLIT) * size_of::<f32>();
    let grid = [spans.len() * splits, kv_heads * group.div_ceil(MOST_HEADS), 1];
    int(OP, grid[0])?;
    let mut args: Vec<Arg> = vec![parts.ptr().into(), call.q.0.into()];
    args.extend(keys.args);
    args.push(at_spans.into());
    for n in [splits, heads, kv_heads, head_size] {
        args.push(int(OP, n)?.into());
    }
    args.push(scale.into());
    let entry = format!("{}_forward_{dtype}_hs{size}", keys.kernel);
    gpu.launch(&entry, Launch { grid, block: THREADS, shared }, &args)?;

    let warps = THREADS as usize / 32;
    let at = Launch { grid: [(spans.len() * heads).div_ceil(warps), 1, 1], block: THREADS, shared: 0 };
    let mut args: Vec<Arg> = vec![call.out.into(), call.lse.into(), parts.ptr().into(), at_spans.into()];
    for n in [spans.len(), splits, heads, head_size] {
        args.push(int(OP, n)?.into());
    }
    gpu.launch(&format!("attention_combine_forward_{dtype}"), at, &args)
}

pub fn expect_scale(op: &'static str, config: &Config) -> Result<()> {
    if config.scale > 0.0 && config.scale.is_finite() {
        return Ok(());
    }
    Err(Error::op(op, "a finite scale above 0", config.scale.to_string()))
}

/// The least head size that there is a kernel of many queries for and that holds `head_size`.
pub fn kernel_size(op: &'static str, dtype: DType, head_size: usize) -> Result<usize> {
    // In bf16 rows are copied in pieces of 16 bytes, which buffers (256-byte aligned) and such widths keep aligned.
    let (sizes, multiple, expected): (&[usize], _, _) = match dtype {
        DType::F32 => (&[64, 128, 256], 1, "a head size up to 256 in f32"),
        _ => (&[64, 72, 80, 96, 128], 8, "a head size up to 128 and a multiple of 8 in bf16"),
    };
    let size = sizes.iter().copied().find(|&size| size >= head_size && head_size.is_multiple_of(multiple));
    size.ok_or_else(|| Error::op(op, expected, head_size.to_string()))
}

fn tile(dtype: DType, head_size: usize) -> Result<Tile> {
    let size = kernel_size(OP, dtype, head_size)?;
    let entry = format!("attention_forward_{dtype}_hs{size}");
    if dtype == DType::F32 {
        // attention_plain.cuh: the weights of 32 queries for 32 keys, with a gap after each 32.
        return Ok(Tile { entry, threads: THREADS, queries: 32, shared: 32 * 33 * 4, maps: None });
    }
    // attention_prefill.cuh: the queries, and two tiles of keys and of values.
    let (queries, keys) = (128, if size > 96 { 32 } else { 64 });
    let shared = (queries + 4 * keys) * size.next_multiple_of(16) * 2;
    Ok(Tile { entry, threads: THREADS, queries, shared, maps: None })
}

/// attention_hopper.cu: a tile of queries and two each of keys and values, 128 rows; ten mbarriers.
fn hopper_tile(dtype: DType, head_size: usize) -> Option<Tile> {
    let size = hopper_size(dtype, head_size)?;
    Some(Tile {
        entry: format!("attention_hopper_forward_bf16_hs{size}"),
        threads: 384,
        queries: 128,
        shared: 5 * 128 * size * 2 + 10 * 8,
        maps: Some(size),
    })
}

/// The head size of the kernels for Hopper that serve this one.
pub fn hopper_size(dtype: DType, head_size: usize) -> Option<usize> {
    let served = dtype == DType::Bf16 && head_size.is_multiple_of(8);
    [64, 80, 96, 128].into_iter().find(|&size| served && head_size <= size)
}

/// Tiles of `tile` rows of one head, of [rows, heads * head_size] in bf16, for a kernel of head size `size`: attention_hopper.cuh, Rows.
pub fn map(
    (base, rows): (Ptr, usize),
    heads: usize,
    head_size: usize,
    size: usize,
    tile: usize,
) -> TensorMap {
    let row = [128, 64].into_iter().find(|row| (2 * size).is_multiple_of(*row)).unwrap_or(32);
    TensorMap {
        base,
        dtype: DType::Bf16,
        // A tensor without rows has no map; none of it is loaded then.
        dims: vec![head_size, heads, rows.max(1)],
        strides: vec![head_size * 2, heads * head_size * 2],
        tile: vec![row / 2, 1, tile],
        swizzle: row,
    }
}
