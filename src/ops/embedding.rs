//! Row gather from a table, and the splice that puts picture features into the rows of picture tokens.
use std::sync::Arc;

use super::{expect_f32, expect_shape, int, kernel_dtype};
use crate::error::{Error, Result};
use crate::tensor::{Arg, Gpu, Indices, Launch, Ptr, Tensor};

/// Rows that a block of kernels/embedding.cu copies, one warp each.
const ROWS: usize = 4;

/// An error unless all `ids` are below `rows`.
pub(super) fn expect_below(op: &'static str, name: &str, ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= rows) {
        None => Ok(()),
        Some(i) => Err(Error::op(op, format!("{name} below {rows}"), format!("{} at {i}", ids[i]))),
    }
}

/// Row `i` of a row-major matrix.
fn row(i: u32, width: usize) -> std::ops::Range<usize> {
    let start = i as usize * width;
    start..start + width
}

/// out[t] = table[ids[t]]; out [T, C], table [V, C]. In main memory out is f32 and the table of any dtype, on a GPU they are of one. Also used to gather the rows of answer tokens.
pub fn forward(out: &mut Tensor, ids: &Indices, table: &Tensor) -> Result<()> {
    const OP: &str = "embedding forward";
    let width = table.cols();
    expect_shape(OP, "out", out, &[ids.len(), width])?;
    expect_below(OP, "ids", ids, table.rows())?;
    if let Some(gpu) = table.gpu() {
        let dtype = kernel_dtype(OP, &[out, table])?;
        let args = [out.ptr_mut(gpu)?.into(), ids.ptr(gpu)?.into(), table.ptr(gpu)?.into()];
        return launch(gpu, &format!("embedding_forward_{dtype}"), &args, ids.len(), width);
    }
    let (out, table) = (out.f32s_mut()?, table.elements()?);
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width.max(1))) {
        table.widen(id as usize * width, out);
    }
    Ok(())
}

/// A kernel of kernels/embedding.cu over `rows` rows of `width` elements.
fn launch(gpu: &Arc<Gpu>, kernel: &str, pointers: &[Arg], rows: usize, width: usize) -> Result<()> {
    let at = Launch { grid: [rows.div_ceil(ROWS), 1, 1], block: 32 * ROWS as u32, shared: 0 };
    let sizes = [int("embedding", rows)?.into(), int("embedding", width)?.into()];
    gpu.launch(kernel, at, &[pointers, &sizes].concat())
}

/// dtable[ids[t]] += dy[t]; dtable [V, C] f32, dy [T, C]. The order is that of t in main memory, and depends on ids alone on a GPU.
pub fn backward(dtable: &mut Tensor, ids: &[u32], dy: &Tensor) -> Result<()> {
    const OP: &str = "embedding backward";
    let width = dtable.cols();
    expect_shape(OP, "dy", dy, &[ids.len(), width])?;
    expect_below(OP, "ids", ids, dtable.rows())?;
    if let Some(gpu) = dy.gpu() {
        expect_f32(OP, "dtable", dtable)?;
        let dtype = kernel_dtype(OP, &[dy])?;
        let runs = Runs::new(ids, &(0..ids.len() as u32).collect::<Vec<_>>());
        // A block of 8 warps has a run's strip of 32 packs.
        let strip = 32 * (16 / dtype.size());
        let shared = 8 * strip * size_of::<f32>();
        let at = Launch { grid: [runs.count, width.div_ceil(strip), 1], block: 256, shared };
        return runs.launch(
            gpu,
            &format!("embedding_backward_{dtype}"),
            at,
            [dtable.ptr_mut(gpu)?, dy.ptr(gpu)?],
            width,
        );
    }
    let (dtable, dy) = (dtable.f32s_mut()?, dy.f32s()?);
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(width.max(1))) {
        add(&mut dtable[row(id, width)], dy);
    }
    Ok(())
}

/// out[positions[i]] = features[sources[i]]; features [F, C]. A source may occur more than once (several questions on one picture),
/// a position only once.
pub fn splice(out: &mut Tensor, features: &Tensor, positions: &Indices, sources: &Indices) -> Result<()> {
    let width = expect_splice("embedding splice", out, features, positions, sources)?;
    if let Some(gpu) = features.gpu() {
        const OP: &str = "embedding splice";
        expect_distinct(OP, positions)?;
        let dtype = kernel_dtype(OP, &[out, features])?;
        let args = [
            out.ptr_mut(gpu)?.into(),
            features.ptr(gpu)?.into(),
            positions.ptr(gpu)?.into(),
            sources.ptr(gpu)?.into(),
        ];
        return launch(gpu, &format!("embedding_splice_forward_{dtype}"), &args, positions.len(), width);
    }
    let (out, features) = (out.f32s_mut()?, features.f32s()?);
    for (&position, &source) in positions.iter().zip(sources.iter()) {
        out[row(position, width)].copy_from_slice(&features[row(source, width)]);
    }
    Ok(())
}

/// dfeatures[sources[i]] += dy[positions[i]], and dy[positions[i]] becomes 0 (the token there got no embedding).
/// No position comes twice.
pub fn splice_backward(
    dfeatures: &mut Tensor,
    dy: &mut Tensor,
    positions: &[u32],
    sources: &[u32],
) -> Result<()> {
    const OP: &str = "embedding splice_backward";
    let width = expect_splice(OP, dy, dfeatures, positions, sources)?;
    if let Some(gpu) = dy.gpu().cloned() {
        expect_distinct(OP, positions)?;
        let dtype = kernel_dtype(OP, &[dfeatures, dy])?;
        let runs = Runs::new(sources, positions);
        let at = Launch { grid: [runs.count.div_ceil(ROWS), 1, 1], block: 32 * ROWS as u32, shared: 0 };
        let kernel = format!("embedding_splice_backward_{dtype}");
        return runs.launch(&gpu, &kernel, at, [dfeatures.ptr_mut(&gpu)?, dy.ptr_mut(&gpu)?], width);
    }
    let (dfeatures, dy) = (dfeatures.f32s_mut()?, dy.f32s_mut()?);
    for (&position, &source) in positions.iter().zip(sources.iter()) {
        let dy = &mut dy[row(position, width)];
        add(&mut dfeatures[row(source, width)], dy);
        dy.fill(0.0);
    }
    Ok(())
}

/// Which rows are added up where: the rows of one index follow one another, in their order. What kernels/embedding.cu calls runs.
struct Runs {
    /// Distinct indices.
    count: usize,
    /// The index of each run; where its rows begin, and the end of all; the rows.
    table: Indices,
}

impl Runs {
    /// Row `rows[i]` is added at `indices[i]`.
    fn new(indices: &[u32], rows: &[u32]) -> Runs {
        let mut order: Vec<usize> = (0..indices.len()).collect();
        order.sort_by_key(|&i| indices[i]);
        let (mut table, mut starts) = (Vec::<u32>::new(), Vec::new());
        for (at, &i) in order.iter().enumerate() {
            if table.last() != Some(&indices[i]) {
                table.push(indices[i]);
                starts.push(at as u32);
            }
        }
        let count = table.len();
        starts.push(order.len() as u32);
        table.extend(starts);
        table.extend(order.iter().map(|&i| rows[i]));
        Runs { count, table: table.into() }
    }

    /// A kernel that adds rows of `width` elements up: from the second of `pointers` to the first.
    fn launch(
        &self,
        gpu: &Arc<Gpu>,
        kernel: &str,
        at: Launch,
        [to, from]: [Ptr; 2],
        width: usize,
    ) -> Result<()> {
        const OP: &str = "embedding";
        let (count, width) = (int(OP, self.count)?, int(OP, width)?);
        gpu.launch(
            kernel,
            at,
            &[to.into(), from.into(), self.table.ptr(gpu)?.into(), count.into(), width.into()],
        )
    }
}

/// An error if a position occurs twice: on a GPU it would be open which row is put there.
fn expect_distinct(op: &'static str, positions: &[u32]) -> Result<()> {
    if positions.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    let mut sorted = positions.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::op(op, "positions that differ", format!("{} twice", pair[0]))),
    }
}

/// The common width of tokens [T, C] and features [F, C], after all indices are checked.
fn expect_splice(
    op: &'static str,
    tokens: &Tensor,
    features: &Tensor,
    positions: &[u32],
    sources: &[u32],
) -> Result<usize> {
    let width = tokens.cols();
    expect_shape(op, "features", features, &[features.rows(), width])?;
    if positions.len() != sources.len() {
        return Err(Error::op(op, format!("{} sources", positions.len()), sources.len().to_string()));
    }
    expect_below(op, "positions", positions, tokens.rows())?;
    expect_below(op, "sources", sources, features.rows())?;
    Ok(width)
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}
