//! Vision patching: a convolution whose stride is its kernel, as a matrix product, plus bias and position embedding (ViT, Dosovitskiy 2020).
//! Pictures are 8-bit; they are normalised while they are cut. Pixels beyond the last whole patch are left out, as a convolution without
//! padding does.
use std::borrow::Cow;
use std::sync::Arc;

use super::add::add_to;
use super::linear::{self, tiles};
use super::matmul::{View, matmul};
use super::pieces::{self, PIECE, widened};
use super::vector_math::vectorised;
use super::{expect_f32, expect_shape, int, kernel_dtype, launch_column_sums};
use crate::error::{Error, Result};
use crate::tensor::{Arg, DType, Device, Gpu, Launch, Ptr, Tensor};

const OP: &str = "patch_embed";
/// Values that a byte can have.
const LEVELS: usize = 256;

/// 8-bit pictures of one size, and what their values stand for.
#[derive(Clone, Debug)]
pub struct Pixels {
    /// u8 [N, H, W, 3]
    pub values: Tensor,
    /// f32 [3, 256]: what each value becomes, by channel.
    pub levels: Tensor,
}

impl Pixels {
    /// All pictures; the levels of the first, which are those of all that one processor made.
    pub fn concat(parts: &[&Pixels]) -> Result<Pixels> {
        let levels = parts.first().map_or_else(|| Tensor::zeros(&[3, LEVELS]), |p| p.levels.clone());
        let values = Tensor::concat(&parts.iter().map(|p| &p.values).collect::<Vec<_>>())?;
        Ok(Pixels { values, levels })
    }

    /// These, on `device`.
    pub fn on(&self, device: &Device) -> Result<Cow<'_, Pixels>> {
        if self.values.device() == *device && self.levels.device() == *device {
            return Ok(Cow::Borrowed(self));
        }
        let (values, levels) = (self.values.to_device(device)?, self.levels.to_device(device)?);
        Ok(Cow::Owned(Pixels { values, levels }))
    }

    /// Number of pictures.
    pub fn count(&self) -> usize {
        self.values.shape().first().copied().unwrap_or(0)
    }
}

/// What makes a row of a patch.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    /// [C, 3, S, S]; or [C, 3, T, S, S] for patches of T frames, all of which are the picture (Qwen2-VL).
    pub weight: &'a Tensor,
    /// [C]
    pub bias: Option<&'a Tensor>,
    /// [P, C]
    pub position: Option<&'a Tensor>,
    /// Patches are put out in squares of `merge` x `merge`, each row by row, for what merges them afterwards. 1: row by row.
    pub merge: usize,
}

/// The sizes of one call: N pictures of `height` x `width`, patches of T = `frames` times `side` x `side`, C = `cols`.
#[derive(Clone, Copy)]
struct Sizes {
    pictures: usize,
    height: usize,
    width: usize,
    frames: usize,
    side: usize,
    merge: usize,
    cols: usize,
}

impl Sizes {
    fn new(pixels: &Pixels, Projection { weight, merge, .. }: Projection) -> Result<Self> {
        let (&[pictures, height, width, 3], DType::U8) = (pixels.values.shape(), pixels.values.dtype())
        else {
            return Err(Error::op(OP, "pixels u8 [N, H, W, 3]", format!("{:?}", pixels.values)));
        };
        expect_shape(OP, "levels", &pixels.levels, &[3, LEVELS])?;
        let (cols, frames, side) = match *weight.shape() {
            [cols, 3, side, across] if side == across => (cols, 1, side),
            [cols, 3, frames, side, across] if side == across => (cols, frames, side),
            _ => {
                let expected = "weight [C, 3, S, S] or [C, 3, T, S, S]";
                return Err(Error::op(OP, expected, format!("{:?}", weight.shape())));
            }
        };
        if side * frames == 0 {
            return Err(Error::op(OP, "patches of at least one pixel", format!("{:?}", weight.shape())));
        }
        if merge == 0 || height / side % merge != 0 || width / side % merge != 0 {
            let expected = format!("whole squares of {merge} x {merge} patches");
            return Err(Error::op(OP, expected, format!("{} x {}", height / side, width / side)));
        }
        Ok(Sizes { pictures, height, width, frames, side, merge, cols })
    }

    /// P
    fn patches(self) -> usize {
        (self.height / self.side) * (self.width / self.side)
    }

    /// 3*T*S*S
    fn patch_len(self) -> usize {
        3 * self.frames * self.side * self.side
    }

    /// Top and left pixel of a picture's `index`-th patch.
    fn corner(self, index: usize) -> (usize, usize) {
        let (square, within) = (index / self.merge.pow(2), index % self.merge.pow(2));
        let across = self.width / self.side / self.merge;
        let y = square / across * self.merge + within / self.merge;
        let x = square % across * self.merge + within % self.merge;
        (y * self.side, x * self.side)
    }
}

/// out [N, P, C], P = (H/S)*(W/S) in the order that `merge` says. patches [N*P, 3*T*S*S], in the weight's order, is what the backward needs;
/// on a GPU it has the type of out.
pub fn forward(
    out: &mut Tensor,
    patches: Option<&mut Tensor>,
    pixels: &Pixels,
    projection: Projection,
) -> Result<()> {
    let sizes = Sizes::new(pixels, projection)?;
    let Projection { bias, position, .. } = projection;
    let (p, k, cols) = (sizes.patches(), sizes.patch_len(), sizes.cols);
    let rows = sizes.pictures * p;
    expect_shape(OP, "out", out, &[sizes.pictures, p, cols])?;
    if let Some(patches) = &patches {
        expect_shape(OP, "patches", patches, &[rows, k])?;
    }
    if let Some(bias) = bias {
        expect_shape(OP, "bias", bias, &[cols])?;
    }
    if let Some(position) = position {
        expect_shape(OP, "position", position, &[p, cols])?;
    }
    if let Some(gpu) = pixels.values.gpu() {
        if let Some(patches) = patches {
            launch_cut(gpu, patches, pixels, sizes, kernel_dtype(OP, &[patches, out])?)?;
        }
        return launch(gpu, out, pixels, projection, sizes);
    }
    if out.is_empty() {
        return Ok(());
    }
    match patches {
        Some(patches) => compute(out.f32s_mut()?, patches.f32s_mut()?, pixels, projection, sizes),
        None => compute(out.f32s_mut()?, &mut vec![0.0; rows * k], pixels, projection, sizes),
    }
}

/// The same in main memory; there is at least one row and one column.
fn compute(
    out: &mut [f32],
    patches: &mut [f32],
    pixels: &Pixels,
    projection: Projection,
    s: Sizes,
) -> Result<()> {
    let Projection { weight, bias, position, .. } = projection;
    let (p, k, cols) = (s.patches(), s.patch_len(), s.cols);
    let (values, levels, weight) = (pixels.values.u8s()?, pixels.levels.f32s()?, widened(weight)?);
    pieces::each(patches, pieces::whole_rows(k), |start, patches| {
        for (i, patch) in patches.chunks_exact_mut(k).enumerate() {
            cut(patch, values, levels, start / k + i, s);
        }
    });
    let bias = bias.map_or_else(|| Ok(Cow::Owned(vec![0.0; cols])), widened)?;
    let position = position.map(widened).transpose()?;
    pieces::each(out, pieces::whole_rows(cols), |start, out| {
        for (i, row) in out.chunks_exact_mut(cols).enumerate() {
            let at = (start / cols + i) % p * cols;
            match &position {
                Some(position) => add_rows(row, &position[at..at + cols], &bias),
                None => row.copy_from_slice(&bias),
            }
        }
    });
    let (a, b) = (View { data: patches, rs: k, cs: 1 }, View { data: &weight, rs: 1, cs: k });
    matmul(s.pictures * p, cols, k, out, cols, 1.0, a, b, true);
    Ok(())
}

/// kernels/patch_embed.cu; shapes have been checked.
fn launch(gpu: &Arc<Gpu>, out: &mut Tensor, pixels: &Pixels, projection: Projection, s: Sizes) -> Result<()> {
    let Projection { weight, bias, position, .. } = projection;
    let dtype = kernel_dtype(OP, &[&[&*out, weight], bias.as_slice(), position.as_slice()].concat())?;
    expect_levels(pixels)?;
    let rows = s.pictures * s.patches();
    // The kernel counts within a picture in 32 bits.
    int(OP, s.height * s.width * 3)?;
    let (tile, mut at) = tiles(gpu.card(), rows, s.cols, dtype);
    at.shared += 3 * LEVELS * dtype.size();
    let ptr = |tensor: Option<&Tensor>| tensor.map_or(Ok(Ptr::NULL), |t| t.ptr(gpu));
    let mut args: Vec<Arg> = vec![
        out.ptr_mut(gpu)?.into(),
        pixels.values.ptr(gpu)?.into(),
        pixels.levels.ptr(gpu)?.into(),
        weight.ptr(gpu)?.into(),
        ptr(bias)?.into(),
        ptr(position)?.into(),
    ];
    for size in [rows, s.cols, s.height, s.width, s.frames, s.side, s.merge] {
        args.push(int(OP, size)?.into());
    }
    gpu.launch(&format!("patch_embed_forward_{dtype}{tile}"), at, &args)
}

/// patch_embed_cut_forward of kernels/patch_embed.cu.
fn launch_cut(gpu: &Arc<Gpu>, patches: &mut Tensor, pixels: &Pixels, s: Sizes, dtype: DType) -> Result<()> {
    /// Of a block, one warp each.
    const ROWS: usize = 4;
    expect_levels(pixels)?;
    let rows = patches.rows();
    let shared = 3 * LEVELS * dtype.size();
    let at = Launch { grid: [rows.div_ceil(ROWS), 1, 1], block: 32 * ROWS as u32, shared };
    let mut args: Vec<Arg> =
        vec![patches.ptr_mut(gpu)?.into(), pixels.values.ptr(gpu)?.into(), pixels.levels.ptr(gpu)?.into()];
    // The kernel counts within a picture in 32 bits.
    int(OP, s.height * s.width * 3)?;
    for size in [rows, s.height, s.width, s.frames, s.side, s.merge] {
        args.push(int(OP, size)?.into());
    }
    gpu.launch(&format!("patch_embed_cut_forward_{dtype}"), at, &args)
}

fn expect_levels(pixels: &Pixels) -> Result<()> {
    match pixels.levels.dtype() {
        DType::F32 => Ok(()),
        _ => Err(Error::op(OP, "levels f32", format!("{:?}", pixels.levels))),
    }
}

/// Copies the `index`-th patch of all pictures out of the pixels, in the weight's order (channel, frame, row, column).
fn cut(patch: &mut [f32], values: &[u8], levels: &[f32], index: usize, s: Sizes) {
    let (picture, (top, left)) = (index / s.patches(), s.corner(index % s.patches()));
    for (i, line) in patch.chunks_exact_mut(s.side).enumerate() {
        let (channel, y) = (i / (s.frames * s.side), top + i % s.side);
        let from = 3 * ((picture * s.height + y) * s.width + left);
        let levels = &levels[channel * LEVELS..(channel + 1) * LEVELS];
        let pixels = values[from..from + 3 * s.side].chunks_exact(3);
        for (to, pixel) in line.iter_mut().zip(pixels) {
            *to = levels[usize::from(pixel[channel])];
        }
    }
}

/// dweight and, of a projection that has both, dbias and dposition are added to (pixels need no gradient). dy [N, P, C].
pub fn backward(
    dweight: &mut Tensor,
    added: Option<(&mut Tensor, &mut Tensor)>,
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
    if let Some((dbias, dposition)) = &added {
        expect_shape(OP, "dbias", dbias, &[cols])?;
        expect_shape(OP, "dposition", dposition, &[p, cols])?;
    }
    if dweight.shape().first() != Some(&cols) || dweight.len() != cols * k {
        let expected = format!("dweight [{cols}, 3, S, S] with 3*S*S = {k}");
        return Err(Error::op(OP, expected, format!("{:?}", dweight.shape())));
    }
    if dy.is_empty() {
        return Ok(());
    }
    if let Some(gpu) = dy.gpu() {
        if let Some((dbias, dposition)) = added {
            launch_backward(gpu, dbias, dposition, dy)?;
        }
        let dy = dy.clone().reshape(&[rows, cols])?;
        return add_weight_gradient(dweight, &dy, patches);
    }
    let (dy, patches) = (dy.f32s()?, patches.f32s()?);
    let (a, b) = (View { data: dy, rs: 1, cs: cols }, View { data: patches, rs: k, cs: 1 });
    matmul(cols, k, rows, dweight.f32s_mut()?, k, 1.0, a, b, true);
    let Some((dbias, dposition)) = added else { return Ok(()) };
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

/// patch_embed_backward and patch_embed_sums_backward of kernels/patch_embed.cu; dy [N, P, C] is not empty.
fn launch_backward(gpu: &Arc<Gpu>, dbias: &mut Tensor, dposition: &mut Tensor, dy: &Tensor) -> Result<()> {
    const THREADS: usize = 256;
    let dtype = kernel_dtype(OP, &[dy])?;
    expect_f32(OP, "dbias", dbias)?;
    expect_f32(OP, "dposition", dposition)?;
    let (p, n) = (dposition.rows(), dposition.len());
    let sums = gpu.alloc(n * size_of::<f32>())?;
    let threads = n.div_ceil(16 / dtype.size());
    let at = Launch { grid: [threads.div_ceil(THREADS), 1, 1], block: THREADS as u32, shared: 0 };
    let args = [
        dposition.ptr_mut(gpu)?.into(),
        sums.ptr().into(),
        dy.ptr(gpu)?.into(),
        int(OP, dy.len() / n)?.into(),
        (n as u64).into(),
    ];
    gpu.launch(&format!("patch_embed_backward_{dtype}"), at, &args)?;
    launch_column_sums(gpu, OP, "patch_embed_sums_backward_f32", dbias, sums.ptr(), p)
}

/// dweight, seen as [C, K], += dy^T patches.
fn add_weight_gradient(dweight: &mut Tensor, dy: &Tensor, patches: &Tensor) -> Result<()> {
    let shape = dweight.shape().to_vec();
    // Taken out and put back, as a second handle to the same memory would make the product write a copy.
    let mut matrix = std::mem::replace(dweight, Tensor::zeros(&[0])).reshape(&[dy.cols(), patches.cols()])?;
    let outcome = linear::backward_weight(&mut matrix, dy, patches);
    *dweight = matrix.reshape(&shape)?;
    outcome
}

vectorised! {
    fn add_rows(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}
