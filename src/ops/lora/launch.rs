//! Up to three adapters that share x, on a GPU: kernels/lora.cu.
use std::sync::Arc;

use super::{Backward, Forward};
use crate::error::Result;
use crate::ops::linear::{SKINNY, Scale, launch as product};
use crate::ops::{expect_f32, int, kernel_dtype};
use crate::tensor::{Arg, Buffer, DType, Gpu, Launch, Ptr, Tensor};

/// Adapters of one launch.
pub(super) const MOST: usize = 3;

/// A kernel's tile: rows, columns.
type Tile = [usize; 2];

/// How kernels of a type are cut, as kernels/lora.cu has it.
struct Shape {
    /// x A^T of all adapters.
    down: Tile,
    /// What is as wide as an adapter's rank.
    thin: Tile,
    /// y and dx.
    square: Tile,
    block: u32,
    /// Shared memory of the three.
    shared: [usize; 3],
}

impl Shape {
    fn of(dtype: DType) -> Shape {
        /// Of a tile's depth in a stage, in bytes.
        const STEP: usize = 32 * 2;
        if dtype == DType::F32 {
            let tile = [32, 32];
            let shared = 2 * 32 * 33 * size_of::<f32>();
            return Shape { down: tile, thin: tile, square: tile, block: 64, shared: [shared; 3] };
        }
        let (down, thin, square): (Tile, Tile, Tile) = ([64, 64], [64, 32], [64, 64]);
        let bytes = |stages: usize, [rows, cols]: Tile| stages * (rows + cols) * STEP;
        Shape { down, thin, square, block: 128, shared: [bytes(5, down), bytes(5, thin), bytes(3, square)] }
    }
}

/// A kernel's arguments for the adapters, with `none` for those that are not there.
fn each<V: Copy + Into<Arg>>(values: &[V], none: V) -> [Arg; MOST] {
    std::array::from_fn(|i| values.get(i).copied().unwrap_or(none).into())
}

fn ptrs<'a>(gpu: &Arc<Gpu>, tensors: impl Iterator<Item = &'a Tensor>) -> Result<[Arg; MOST]> {
    Ok(each(&tensors.map(|t| t.ptr(gpu)).collect::<Result<Vec<_>>>()?, Ptr::NULL))
}

fn ints(op: &'static str, sizes: impl Iterator<Item = usize>) -> Result<[Arg; MOST]> {
    Ok(each(&sizes.map(|n| int(op, n)).collect::<Result<Vec<_>>>()?, 0))
}

/// Shapes have been checked.
pub(super) fn forward(gpu: &Arc<Gpu>, op: &'static str, adapters: &mut [Forward], x: &Tensor) -> Result<()> {
    let mut dtype = x.dtype();
    for Forward { out, xa, a, b, .. } in &*adapters {
        dtype = kernel_dtype(op, &[out, xa, x, a, b])?;
    }
    let (m, k) = (x.rows(), x.cols());
    if m <= SKINNY {
        for Forward { out, xa, a, b, scale } in adapters {
            product(gpu, op, xa, x, a, None, Scale { alpha: 1.0, accumulate: false })?;
            product(gpu, op, out, xa, b, None, Scale { alpha: *scale, accumulate: true })?;
        }
        return Ok(());
    }
    let shape = Shape::of(dtype);
    let ranks = ints(op, adapters.iter().map(|f| f.xa.cols()))?;
    let rank: usize = adapters.iter().map(|f| f.xa.cols()).sum();
    let mut xa = Vec::new();
    let mut out = Vec::new();
    for f in &mut *adapters {
        xa.push(f.xa.ptr_mut(gpu)?);
        out.push(f.out.ptr_mut(gpu)?);
    }
    let xa = each(&xa, Ptr::NULL);
    let a = ptrs(gpu, adapters.iter().map(|f| f.a))?;
    let sizes = [int(op, m)?.into(), int(op, k)?.into()];
    let args = [&xa[..], &[x.ptr(gpu)?.into()], &a, &ranks, &sizes].concat();
    let [rows, cols] = shape.down;
    let grid = [rank.div_ceil(cols), m.div_ceil(rows), 1];
    let at = Launch { grid, block: shape.block, shared: shape.shared[0] };
    gpu.launch(&format!("lora_down_forward_{dtype}"), at, &args)?;

    let [rows, cols] = shape.square;
    let across = adapters.iter().map(|f| f.out.cols().div_ceil(cols)).sum();
    let at = Launch { grid: [m.div_ceil(rows), across, 1], block: shape.block, shared: shape.shared[2] };
    let b = ptrs(gpu, adapters.iter().map(|f| f.b))?;
    let widths = ints(op, adapters.iter().map(|f| f.out.cols()))?;
    let scales = each(&adapters.iter().map(|f| f.scale).collect::<Vec<_>>(), 0.0);
    let args = [&each(&out, Ptr::NULL)[..], &xa, &b, &widths, &ranks, &scales, &sizes[..1]].concat();
    gpu.launch(&format!("lora_up_forward_{dtype}"), at, &args)
}

/// Shapes have been checked.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    op: &'static str,
    dx: Option<&mut Tensor>,
    adapters: &mut [Backward],
    x: &Tensor,
) -> Result<()> {
    let dtype = kernel_dtype(op, &[&[x], dx.as_deref().as_slice()].concat())?;
    for Backward { grads, dy, xa, a, b, .. } in &*adapters {
        kernel_dtype(op, &[x, dy, xa, a, b])?;
        if let Some((da, db)) = grads {
            expect_f32(op, "da", da)?;
            expect_f32(op, "db", db)?;
        }
    }
    let pass = Pass::of(gpu, op, adapters, x, dtype)?;
    if pass.pieces == 0 && dx.is_none() {
        return Ok(());
    }
    let dxa = pass.down(adapters)?;
    let partials = gpu.alloc(pass.pieces * pass.size * size_of::<f32>())?;
    pass.products(dx, &partials, &dxa, adapters, x)?;
    pass.reduce(adapters, &partials)
}

/// What the launches of a backward have in common.
struct Pass<'a> {
    gpu: &'a Arc<Gpu>,
    op: &'static str,
    dtype: DType,
    shape: Shape,
    m: usize,
    k: usize,
    /// Pieces that M is cut into for the gradients of the weights, and their rows; none if there are no gradients to make.
    pieces: usize,
    piece_rows: usize,
    /// Elements, and tiles, of all gradients.
    size: usize,
    tiles: usize,
    widths: [Arg; MOST],
    ranks: [Arg; MOST],
    /// The ranks of those that are trained, else 0.
    trained: [Arg; MOST],
    scales: [Arg; MOST],
}

impl<'a> Pass<'a> {
    fn of(
        gpu: &'a Arc<Gpu>,
        op: &'static str,
        adapters: &[Backward],
        x: &Tensor,
        dtype: DType,
    ) -> Result<Self> {
        /// Blocks that keep a GPU busy, and the fewest rows that are worth one.
        const BLOCKS: usize = 512;
        const FEWEST: usize = 128;
        /// Of the tiles' depth: pieces are whole steps.
        const STEP: usize = 32;
        let shape = Shape::of(dtype);
        let (m, k) = (x.rows(), x.cols());
        let trained = |f: &Backward| if f.grads.is_some() { f.xa.cols() } else { 0 };
        let [rows, cols] = shape.thin;
        let tiles =
            |f: &Backward| (f.dy.cols().div_ceil(rows) + k.div_ceil(rows)) * trained(f).div_ceil(cols);
        let tiles: usize = adapters.iter().map(tiles).sum();
        let most = if tiles == 0 { 0 } else { BLOCKS.div_ceil(tiles).min(m.div_ceil(FEWEST)) };
        let piece_rows = if most == 0 { STEP } else { m.div_ceil(most).next_multiple_of(STEP) };
        let pieces = if most == 0 { 0 } else { m.div_ceil(piece_rows) };
        Ok(Pass {
            gpu,
            op,
            dtype,
            shape,
            m,
            k,
            pieces,
            piece_rows,
            size: adapters.iter().map(|f| (f.dy.cols() + k) * trained(f)).sum(),
            tiles,
            widths: ints(op, adapters.iter().map(|f| f.dy.cols()))?,
            ranks: ints(op, adapters.iter().map(|f| f.xa.cols()))?,
            trained: ints(op, adapters.iter().map(trained))?,
            scales: each(&adapters.iter().map(|f| f.scale).collect::<Vec<_>>(), 0.0),
        })
    }

    /// s dy B of each.
    fn down(&self, adapters: &[Backward]) -> Result<Vec<Buffer>> {
        let alloc = |f: &Backward| self.gpu.alloc(self.m * f.xa.cols() * self.dtype.size());
        let dxa = adapters.iter().map(alloc).collect::<Result<Vec<_>>>()?;
        let [rows, cols] = self.shape.thin;
        let across = adapters.iter().map(|f| f.xa.cols().div_ceil(cols)).sum();
        let grid = [self.m.div_ceil(rows), across, 1];
        let at = Launch { grid, block: self.shape.block, shared: self.shape.shared[1] };
        let args = [
            &addresses(&dxa)[..],
            &ptrs(self.gpu, adapters.iter().map(|f| f.dy))?,
            &ptrs(self.gpu, adapters.iter().map(|f| f.b))?,
            &self.widths,
            &self.ranks,
            &self.scales,
            &[int(self.op, self.m)?.into()],
        ];
        self.gpu.launch(&format!("lora_down_backward_{}", self.dtype), at, &args.concat())?;
        Ok(dxa)
    }

    /// Pieces of the weights' gradients, and dx.
    fn products(
        &self,
        dx: Option<&mut Tensor>,
        partials: &Buffer,
        dxa: &[Buffer],
        adapters: &[Backward],
        x: &Tensor,
    ) -> Result<()> {
        let (gpu, op) = (self.gpu, self.op);
        let [rows, cols] = self.shape.square;
        let (dx, dx_blocks) = match dx {
            Some(dx) => (dx.ptr_mut(gpu)?, self.m.div_ceil(rows) * self.k.div_ceil(cols)),
            None => (Ptr::NULL, 0),
        };
        let weight_blocks = self.pieces * self.tiles;
        let shared = self.shape.shared[1].max(self.shape.shared[2]);
        let at = Launch { grid: [weight_blocks + dx_blocks, 1, 1], block: self.shape.block, shared };
        let args = [
            &[dx.into(), partials.ptr().into(), x.ptr(gpu)?.into()][..],
            &ptrs(gpu, adapters.iter().map(|f| f.dy))?,
            &ptrs(gpu, adapters.iter().map(|f| f.xa))?,
            &addresses(dxa),
            &ptrs(gpu, adapters.iter().map(|f| f.a))?,
            &self.widths,
            &self.ranks,
            &self.trained,
            &self.scales,
            &[int(op, self.m)?.into(), int(op, self.k)?.into(), int(op, self.pieces)?.into()],
            &[int(op, self.piece_rows)?.into(), int(op, weight_blocks)?.into()],
        ];
        gpu.launch(&format!("lora_backward_{}", self.dtype), at, &args.concat())
    }

    /// The pieces, onto the gradients.
    fn reduce(&self, adapters: &mut [Backward], partials: &Buffer) -> Result<()> {
        const THREADS: usize = 256;
        if self.pieces == 0 {
            return Ok(());
        }
        let (mut da, mut db) = (Vec::new(), Vec::new());
        for adapter in adapters {
            let (a, b) = match &mut adapter.grads {
                Some((a, b)) => (a.ptr_mut(self.gpu)?, b.ptr_mut(self.gpu)?),
                None => (Ptr::NULL, Ptr::NULL),
            };
            da.push(a);
            db.push(b);
        }
        let at = Launch { grid: [self.size.div_ceil(THREADS), 1, 1], block: THREADS as u32, shared: 0 };
        let args = [
            &each(&db, Ptr::NULL)[..],
            &each(&da, Ptr::NULL),
            &[partials.ptr().into()],
            &self.widths,
            &self.trained,
            &[int(self.op, self.k)?.into(), int(self.op, self.pieces)?.into()],
        ];
        self.gpu.launch("lora_reduce_backward_f32", at, &args.concat())
    }
}

fn addresses(buffers: &[Buffer]) -> [Arg; MOST] {
    each(&buffers.iter().map(Buffer::ptr).collect::<Vec<_>>(), Ptr::NULL)
}
