//! patch_embed: 8-bit pictures to embedded patches.

use super::check::Tolerance;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::patch_embed::{Pixels, Projection, backward, forward};
use crate::selftest::on::On;
use crate::tensor::{DType, Tensor};

#[derive(Clone, Copy)]
struct Tower {
    name: &'static str,
    pictures: usize,
    height: usize,
    width: usize,
    patch: usize,
    frames: usize,
    merge: usize,
    cols: usize,
    position: bool,
}

const SMOL: Tower = Tower {
    name: "SmolVLM-500M",
    pictures: 5,
    height: 512,
    width: 512,
    patch: 16,
    frames: 1,
    merge: 1,
    cols: 768,
    position: true,
};
const QWEN: Tower = Tower {
    name: "Qwen2-VL",
    pictures: 2,
    height: 448,
    width: 336,
    patch: 14,
    frames: 2,
    merge: 2,
    cols: 1280,
    position: false,
};
const SO400M: Tower = Tower { name: "SigLIP so400m", height: 384, width: 384, patch: 14, cols: 1152, ..SMOL };

pub(super) fn cases(size: Size) -> Vec<Case> {
    let small = [
        Tower { name: "small", pictures: 2, height: 48, width: 33, cols: 40, ..SMOL },
        Tower { name: "small, pixels left over", pictures: 3, height: 30, width: 45, cols: 70, ..SO400M },
        Tower { name: "small, in squares", pictures: 2, height: 28, width: 84, cols: 33, ..QWEN },
    ];
    let full: &[Tower] = if size.quick() { &[] } else { &[SMOL, SO400M, QWEN] };
    let case = |t: &Tower| {
        let Tower { name, pictures, height, width, patch, cols, .. } = *t;
        let shape = format!("{name}, {pictures} x {height} x {width} by {patch}, {cols}");
        let t = *t;
        [
            Case::new("patch_embed", shape.clone(), move |on| embed(on, t)),
            Case::new("patch_embed backward", shape, move |on| learned(on, t)),
        ]
    };
    small.iter().chain(full).flat_map(case).collect()
}

fn embed(on: &mut On, t: Tower) -> Result<Vec<Output>> {
    let Tower { pictures, height, width, patch, frames, merge, cols, .. } = t;
    let values = on.indices(pictures * height * width * 3, 256).iter().map(|&v| v as u8).collect();
    let values = on.moved(Tensor::from_u8(&[pictures, height, width, 3], values)?)?;
    // Numbers that the device's type holds: it multiplies them in that type.
    let levels = on.rounded_f32(&[3, 256], 1.0)?;
    let k = 3 * frames * patch * patch;
    let small = 1.0 / (k as f32).sqrt();
    let weight = match frames {
        1 => on.random(&[cols, 3, patch, patch], small)?,
        _ => on.random(&[cols, 3, frames, patch, patch], small)?,
    };
    let patches = (height / patch) * (width / patch);
    let (bias, position) = (on.random(&[cols], 1.0)?, on.random(&[patches, cols], 1.0)?);
    let (mut out, mut cut) = (on.output(&[pictures, patches, cols])?, on.output(&[pictures * patches, k])?);
    let position = t.position.then_some(&position);
    let projection = Projection { weight: &weight, bias: Some(&bias), position, merge };
    forward(&mut out, Some(&mut cut), &Pixels { values, levels }, projection)?;
    let tolerance = Tolerance::product(on.dtype, k, f64::from(small)).store(on.dtype);
    Ok(vec![
        Output::new("", out, tolerance),
        Output::new("(patches)", cut, Tolerance::exact("levels as they are")),
    ])
}

/// Gradients, from patches and the output's gradient.
fn learned(on: &mut On, t: Tower) -> Result<Vec<Output>> {
    let Tower { pictures, height, width, patch, frames, cols, .. } = t;
    let (patches, k) = ((height / patch) * (width / patch), 3 * frames * patch * patch);
    let (cut, dy) = (on.random(&[pictures * patches, k], 1.0)?, on.random(&[pictures, patches, cols], 1.0)?);
    let (mut dweight, mut dbias) = (on.random_f32(&[cols, k], 1.0)?, on.random_f32(&[cols], 1.0)?);
    let mut dposition = on.random_f32(&[patches, cols], 1.0)?;
    backward(&mut dweight, Some((&mut dbias, &mut dposition)), &dy, &cut)?;
    let sums = |n| Tolerance::product(DType::F32, n, 1.0);
    Ok(vec![
        Output::new("(dweight)", dweight, Tolerance::product(on.dtype, pictures * patches, 1.0)),
        Output::new("(dbias)", dbias, sums(pictures * patches)),
        Output::new("(dposition)", dposition, sums(pictures)),
    ])
}
