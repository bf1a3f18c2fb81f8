//! kernels/gemm_int8.cu and gemm_int8_hopper.cu: which kernel, and how many blocks. All of them give the same bits.
use std::sync::Arc;

use super::{OP, Quantized};
use crate::error::Result;
use crate::ops::{int, kernel_dtype};
use crate::tensor::{Arg, Buffer, Card, DType, Gpu, Launch, Ptr, Tensor, TensorMap};

/// A kernel: how its name goes on behind gemm_int8 (and _hopper) and behind the type, and how it is launched.
struct Choice {
    infix: &'static str,
    suffix: &'static str,
    at: Launch,
    /// Rows of x and of a weight in a box of its tile loads; `None`: it takes addresses.
    boxes: Option<[usize; 2]>,
}

/// `rows`: of W, or of both matrices that share a block's columns.
fn choose(card: Card, [m, rows, k]: [usize; 3]) -> Choice {
    if m <= MOST_SKINNY * SKINNY {
        skinny(m, rows)
    } else if card.hopper && rows > 0 && k > 0 && k.is_multiple_of(16) {
        hopper(card, m, rows)
    } else {
        tile(card, m, rows)
    }
}

/// Rows of x in an mma, and of W in a block, of the kernels for few rows; such mma in a block.
const SKINNY: usize = 16;
const MOST_SKINNY: usize = 2;

fn skinny(m: usize, rows: usize) -> Choice {
    /// Of a block.
    const WARPS: usize = 8;
    let tiles = m.div_ceil(SKINNY).max(1);
    let shared = WARPS * tiles * SKINNY * SKINNY * size_of::<i32>();
    let at = Launch { grid: [rows.div_ceil(SKINNY), 1, 1], block: 32 * WARPS as u32, shared };
    Choice { infix: "_skinny", suffix: if tiles == 1 { "" } else { "_m32" }, at, boxes: None }
}

fn tile(card: Card, m: usize, rows: usize) -> Choice {
    /// Stages of the pipeline, and bytes of a row in one.
    const STAGES: usize = 4;
    const ROW: usize = 64;
    let launch = |side: usize| {
        let grid = [m.div_ceil(side), rows.div_ceil(side), 1];
        Launch { grid, block: 128, shared: STAGES * 2 * side * ROW }
    };
    let large = launch(128);
    if card.is_filled_by(large.grid.iter().product()) {
        Choice { infix: "", suffix: "", at: large, boxes: None }
    } else {
        Choice { infix: "", suffix: "_t64", at: launch(64), boxes: None }
    }
}

fn hopper(card: Card, m: usize, rows: usize) -> Choice {
    const ROWS: usize = 128;
    // A multiprocessor has one block at a time.
    let waves = |at: &Launch| at.grid.iter().product::<usize>().div_ceil(card.multiprocessors);
    let launch = |cols: usize, stages: usize| {
        let grid = [m.div_ceil(ROWS), rows.div_ceil(cols), 1];
        // And two mbarriers a stage.
        Launch { grid, block: 384, shared: stages * ((ROWS + cols) * BOX + 16) }
    };
    let (large, small) = (launch(256, 4), launch(128, 6));
    // A wave of large tiles takes as long as two of small ones.
    if 2 * waves(&large) <= waves(&small) {
        Choice { infix: "", suffix: "", at: large, boxes: Some([ROWS, 128]) }
    } else {
        Choice { infix: "", suffix: "_n128", at: small, boxes: Some([ROWS, 64]) }
    }
}

/// Bytes of a row of a box.
const BOX: usize = 128;

/// What all of these kernels are given of a matrix; `rows`: of a box.
fn matrix(gpu: &Arc<Gpu>, of: Quantized, rows: Option<usize>) -> Result<[Arg; 2]> {
    let (base, depth) = (of.q.ptr(gpu)?, of.q.cols());
    let elements = match rows {
        None => base.into(),
        Some(rows) => gpu.tensor_map(&TensorMap {
            base,
            dtype: DType::I8,
            dims: vec![depth, of.q.rows()],
            strides: vec![depth],
            tile: vec![BOX, rows],
            swizzle: BOX,
        })?,
    };
    Ok([elements, of.scale.ptr(gpu)?.into()])
}

/// gemm_int8[_hopper][_swiglu][_skinny]_forward_TYPE[_TILE]
fn entry(choice: &Choice, what: &str, dtype: DType) -> String {
    let hopper = if choice.boxes.is_some() { "_hopper" } else { "" };
    format!("gemm_int8{hopper}{what}{}_forward_{dtype}{}", choice.infix, choice.suffix)
}

fn sizes([m, n, k]: [usize; 3]) -> Result<[Arg; 3]> {
    Ok([int(OP, m)?.into(), int(OP, n)?.into(), int(OP, k)?.into()])
}

/// Shapes have been checked.
pub(super) fn forward(
    gpu: &Arc<Gpu>,
    out: &mut Tensor,
    x: Quantized,
    weight: Quantized,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    size: [usize; 3],
) -> Result<()> {
    let dtype = kernel_dtype(OP, &[&[&*out], bias.as_slice(), residual.as_slice()].concat())?;
    let choice = choose(gpu.card(), size);
    let optional = |t: Option<&Tensor>| t.map_or(Ok(Ptr::NULL), |t| t.ptr(gpu));
    let mut args = vec![out.ptr_mut(gpu)?.into()];
    args.extend(matrix(gpu, x, choice.boxes.map(|b| b[0]))?);
    args.extend(matrix(gpu, weight, choice.boxes.map(|b| b[1]))?);
    args.extend([optional(bias)?.into(), optional(residual)?.into()]);
    args.extend(sizes(size)?);
    gpu.launch(&entry(&choice, "", dtype), choice.at, &args)
}

/// act [M, I] in bf16. Shapes have been checked.
pub(super) fn forward_swiglu(
    gpu: &Arc<Gpu>,
    x: Quantized,
    gate: Quantized,
    up: Quantized,
    size: [usize; 3],
) -> Result<Buffer> {
    let [m, n, k] = size;
    let act = gpu.alloc(m * n * 2)?;
    let choice = choose(gpu.card(), [m, 2 * n, k]);
    let mut args = vec![act.ptr().into()];
    args.extend(matrix(gpu, x, choice.boxes.map(|b| b[0]))?);
    for of in [gate, up] {
        args.extend(matrix(gpu, of, choice.boxes.map(|b| b[1]))?);
    }
    args.extend(sizes(size)?);
    gpu.launch(&entry(&choice, "_swiglu", DType::Bf16), choice.at, &args)?;
    Ok(act)
}
