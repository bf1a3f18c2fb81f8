//! Pictures inside the page, as data URIs.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use minijinja::Value;
use serde::Serialize;

use crate::data::images;
use crate::error::{Error, Result};
use crate::models::image::{Filter, Rgb, resize};

/// The longest side of an embedded picture, in pixels.
const LONGEST: usize = 320;
/// A picture up to this size is shown enlarged, with its pixels as squares.
const SMALL: usize = 128;
const JPEG_QUALITY: u8 = 82;

#[derive(Serialize)]
pub struct Embedded {
    /// A data URI, safe to put into an attribute.
    pub uri: Value,
    pub width: usize,
    pub height: usize,
    pub small: bool,
}

/// The picture at `path`, made smaller if need be; an error says what is wrong without the path, which depends on where the run lies.
pub fn embed(path: &Path) -> Result<Embedded, String> {
    images::try_read(path)
        .map_err(|e| e.to_string())?
        .and_then(|picture| fit(picture).map_err(|e| e.to_string()))
}

fn fit(picture: Rgb) -> Result<Embedded> {
    let longest = picture.width.max(picture.height);
    let small = longest <= SMALL;
    let picture = if longest > LONGEST {
        let side = |n: usize| ((n * LONGEST + longest / 2) / longest).max(1);
        resize(&picture, side(picture.width), side(picture.height), Filter::Lanczos)?
    } else {
        picture
    };
    let (png, jpeg) = (encode(&picture, true)?, encode(&picture, false)?);
    let (kind, bytes) = if small || png.len() <= jpeg.len() { ("png", png) } else { ("jpeg", jpeg) };
    let uri = Value::from_safe_string(format!("data:image/{kind};base64,{}", BASE64_STANDARD.encode(bytes)));
    Ok(Embedded { uri, width: picture.width, height: picture.height, small })
}

fn encode(picture: &Rgb, png: bool) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (width, height) = (picture.width as u32, picture.height as u32);
    let done = if png {
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive).write_image(
            &picture.data,
            width,
            height,
            ExtendedColorType::Rgb8,
        )
    } else {
        JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(
            &picture.data,
            width,
            height,
            ExtendedColorType::Rgb8,
        )
    };
    done.map_err(|e| Error::Failure(format!("encoding a picture: {e}")))?;
    Ok(bytes)
}
