//! Pictures to tiles, as transformers' Idefics3ImageProcessor (PIL backend) does, bit for bit: resize, split, rescale, normalise.
use std::path::Path;

use crate::error::Result;
use crate::tensor::Tensor;

/// 8-bit RGB, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// preprocessor_config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {}

/// One picture cut up: rows x cols tiles, then the global tile; 0 x 0 when the picture is not split (one tile then).
#[derive(Clone, Debug)]
pub struct Tiles {
    pub rows: usize,
    pub cols: usize,
    /// [N, 3, S, S], normalised.
    pub pixels: Tensor,
}

impl ImageProcessor {
    pub fn read(folder: &Path) -> Result<ImageProcessor> {
        todo!()
    }

    pub fn process(&self, picture: &Rgb) -> Result<Tiles> {
        todo!()
    }
}
