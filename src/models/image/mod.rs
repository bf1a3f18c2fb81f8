//! Pictures to tiles, as transformers' Idefics3ImageProcessor (PIL backend) does, bit for bit: resize, split, rescale, normalise; or, as its
//! Qwen2VLImageProcessor does, to one picture of about the size they have. The last two are a table of what each of the 256 values becomes: tiles stay 8-bit until they are cut into patches (ops::patch_embed).

mod config;
mod resize;
mod tiles;
mod whole;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use resize::{Filter, resize};
pub use tiles::Plan;

use crate::error::{Error, Result};
use crate::ops::patch_embed::Pixels;
use crate::tensor::Tensor;

/// 8-bit RGB, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

impl Rgb {
    /// The fields fit together and there is at least one pixel.
    pub fn check(&self) -> Result<()> {
        let bytes = self.width.checked_mul(self.height).and_then(|n| n.checked_mul(3));
        if self.data.is_empty() || bytes != Some(self.data.len()) {
            let expected = format!("3 bytes for each of {}x{} pixels, at least one", self.width, self.height);
            return Err(Error::op("image", expected, format!("{} bytes", self.data.len())));
        }
        Ok(())
    }
}

/// preprocessor_config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    layout: Layout,
    filter: Filter,
    /// `rescale_factor`; none with `do_rescale` false.
    scale: Option<f64>,
    /// `image_mean` and `image_std`, by channel; none with `do_normalize` false.
    norm: Option<([f32; 3], [f32; 3])>,
}

/// Other bounds on the pixels of pictures that are left whole than the checkpoint's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PixelBounds {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<usize>,
}

impl PixelBounds {
    pub fn is_none(&self) -> bool {
        *self == PixelBounds::default()
    }
}

/// What becomes of a picture's size.
#[derive(Clone, Debug, PartialEq)]
enum Layout {
    Tiles(Cut),
    Whole(Bounds),
}

/// Tiles of one size.
#[derive(Clone, Debug, PartialEq)]
struct Cut {
    /// The first resize; none with `do_resize` false.
    resize_to: Option<Target>,
    /// Side of a tile in pixels (`max_image_size.longest_edge`).
    tile: usize,
    split: bool,
}

/// One picture whose sides are multiples of `unit` and that has so many pixels.
#[derive(Clone, Debug, PartialEq)]
struct Bounds {
    /// `patch_size` * `merge_size`: the side of what becomes a token.
    unit: usize,
    min_pixels: usize,
    max_pixels: usize,
}

/// `size` of preprocessor_config.json.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    LongestEdge(usize),
    /// Width and height.
    Exact(usize, usize),
}

/// One picture cut up: rows x cols tiles, then the global tile; 0 x 0 when the picture is not split (one tile then). Or a picture left whole, and
/// the rows and columns of its tokens.
#[derive(Clone, Debug)]
pub struct Tiles {
    pub rows: usize,
    pub cols: usize,
    /// N pictures of S x S, or one of H x W.
    pub pixels: Pixels,
}

impl Tiles {
    /// What the processor of the published model puts out, before it cuts patches: f32 [N, 3, H, W].
    pub fn normalised(&self) -> Result<Tensor> {
        let &[tiles, height, width, channels] = self.pixels.values.shape() else {
            return Err(Error::op("image", "pixels [N, S, S, 3]", format!("{:?}", self.pixels.values)));
        };
        let (values, levels) = (self.pixels.values.u8s()?, self.pixels.levels.f32s()?);
        let mut planes = vec![0.0; values.len()];
        for (i, plane) in planes.chunks_exact_mut((height * width).max(1)).enumerate() {
            let (tile, channel) = (i / channels, i % channels);
            let from = values[tile * height * width * channels..].chunks_exact(channels);
            for (to, pixel) in plane.iter_mut().zip(from) {
                *to = levels[256 * channel + usize::from(pixel[channel])];
            }
        }
        Tensor::from_vec(&[tiles, channels, height, width], planes)
    }
}

impl ImageProcessor {
    /// The same with every picture as one tile, whatever preprocessor_config.json says.
    pub fn without_splitting(self) -> Self {
        let layout = match self.layout {
            Layout::Tiles(cut) => Layout::Tiles(Cut { split: false, ..cut }),
            whole => whole,
        };
        ImageProcessor { layout, ..self }
    }

    /// Side of a tile in pixels, S of `Tiles::pixels`; where there are none, of what becomes a token.
    pub fn tile_side(&self) -> usize {
        match &self.layout {
            Layout::Tiles(cut) => cut.tile,
            Layout::Whole(bounds) => bounds.unit,
        }
    }

    /// With other bounds on the pixels of a picture that is left whole.
    pub fn with_pixels(self, pixels: PixelBounds) -> Result<Self> {
        match self.layout {
            _ if pixels.is_none() => Ok(self),
            Layout::Tiles(_) => Err(Error::Usage(
                "min_pixels, max_pixels: this model cuts pictures into tiles of one size".into(),
            )),
            Layout::Whole(b) => {
                let min = pixels.min_pixels.unwrap_or(b.min_pixels);
                let max = pixels.max_pixels.unwrap_or(b.max_pixels);
                let bounds = Bounds::new(b.unit, min, max)
                    .map_err(|what| Error::Usage(format!("min_pixels {min}, max_pixels {max}: {what}")))?;
                Ok(ImageProcessor { layout: Layout::Whole(bounds), ..self })
            }
        }
    }

    /// The picture as tiles. Fails on a picture whose fields do not fit together and on one that would become too large.
    pub fn process(&self, picture: &Rgb) -> Result<Tiles> {
        picture.check()?;
        let plan = self.plan(picture.width, picture.height)?;
        if let Layout::Whole(_) = self.layout {
            let resized = resize(picture, plan.second.0, plan.second.1, self.filter)?;
            let values = Tensor::from_u8(&[1, resized.height, resized.width, 3], resized.data)?;
            let pixels = Pixels { values, levels: self.levels()? };
            return Ok(Tiles { rows: plan.rows, cols: plan.cols, pixels });
        }
        let first = resize(picture, plan.first.0, plan.first.1, self.filter)?;
        let whole = resize(&first, plan.second.0, plan.second.1, self.filter)?;
        drop(first);

        let (side, grid) = (self.tile_side(), plan.rows * plan.cols);
        let mut values = vec![0; (grid + 1) * 3 * side * side];
        let (cut, last) = values.split_at_mut(grid * 3 * side * side);
        cut.par_chunks_exact_mut(3 * side * side).enumerate().for_each(|(i, tile)| {
            copy_square(tile, &whole, (i % plan.cols * side, i / plan.cols * side), side);
        });
        copy_square(last, &resize(&whole, side, side, self.filter)?, (0, 0), side);
        let values = Tensor::from_u8(&[grid + 1, side, side, 3], values)?;
        Ok(Tiles { rows: plan.rows, cols: plan.cols, pixels: Pixels { values, levels: self.levels()? } })
    }

    /// Pixels of the largest picture that `process` makes.
    pub fn most_pixels(&self) -> usize {
        match &self.layout {
            Layout::Tiles(cut) => cut.most_pixels(),
            Layout::Whole(bounds) => bounds.most_pixels(),
        }
    }

    /// A black one of `pixels` pixels, or up to what makes its tiles, or tokens, whole; of a shape that no picture need have.
    pub fn blank(&self, pixels: usize) -> Result<Pixels> {
        let side = self.tile_side();
        let n = pixels.div_ceil(side * side);
        let shape = match &self.layout {
            Layout::Tiles(_) => [n, side, side, 3],
            Layout::Whole(_) => [1, n * side, side, 3],
        };
        let values = Tensor::from_u8(&shape, vec![0; shape.iter().product()])?;
        Ok(Pixels { values, levels: self.levels()? })
    }

    /// What each of the 256 values becomes, by channel: the product with the factor in f64, rounded to f32, then (x - mean) / std in f32.
    fn levels(&self) -> Result<Tensor> {
        let level = |i: usize| {
            let (channel, value) = (i / 256, i % 256);
            let x = (value as f64 * self.scale.unwrap_or(1.0)) as f32;
            self.norm.map_or(x, |(mean, std)| (x - mean[channel]) / std[channel])
        };
        Tensor::from_vec(&[3, 256], (0..3 * 256).map(level).collect())
    }
}

/// The square of `side` at `corner` (x, y) of a picture.
fn copy_square(out: &mut [u8], picture: &Rgb, corner: (usize, usize), side: usize) {
    for (y, row) in out.chunks_exact_mut(3 * side).enumerate() {
        let start = 3 * ((corner.1 + y) * picture.width + corner.0);
        row.copy_from_slice(&picture.data[start..start + 3 * side]);
    }
}
