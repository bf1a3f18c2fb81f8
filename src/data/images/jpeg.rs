//! JPEGs with the values of libjpeg-turbo, which Pillow reads them with: mozjpeg decodes as it does. The decoder of the crate `image` differs from it in up to
//! a third of the values, by up to 26 levels (tests/images has pictures and what Pillow makes of them).
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, GrayImage, RgbImage};
use mozjpeg::{ColorSpace, Decompress};

/// Width and height; `None` where the headers are not understood.
pub fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = catch_unwind(AssertUnwindSafe(|| Decompress::new_mem(bytes).map(|header| header.size())));
    let (width, height) = header.ok()?.ok()?;
    Some((width.try_into().ok()?, height.try_into().ok()?))
}

/// The picture, in gray or RGB; `None` where the headers are not understood. Width and height are those that were checked.
pub fn decode(bytes: &[u8], width: u32, height: u32) -> Option<Result<DynamicImage, String>> {
    // The C library unwinds from what it cannot go on with.
    match catch_unwind(AssertUnwindSafe(|| picture(bytes, width, height))) {
        Ok(picture) => picture.map_err(|e| e.to_string()).transpose(),
        Err(said) => Some(Err(said.downcast().map_or("libjpeg cannot read it".to_string(), |said| *said))),
    }
}

fn picture(bytes: &[u8], width: u32, height: u32) -> io::Result<Option<DynamicImage>> {
    let Ok(header) = Decompress::new_mem(bytes) else { return Ok(None) };
    if header.size() != (width as usize, height as usize) {
        return Ok(None);
    }
    match header.color_space() {
        ColorSpace::JCS_GRAYSCALE => {
            let data = header.grayscale()?.read_scanlines()?;
            Ok(GrayImage::from_raw(width, height, data).map(DynamicImage::ImageLuma8))
        }
        ColorSpace::JCS_YCbCr | ColorSpace::JCS_RGB => {
            let data = header.rgb()?.read_scanlines()?;
            Ok(RgbImage::from_raw(width, height, data).map(DynamicImage::ImageRgb8))
        }
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => {
            let inks: Vec<[u8; 4]> = header.to_colorspace(ColorSpace::JCS_CMYK)?.read_scanlines()?;
            let data = inks.into_iter().flat_map(rgb).collect();
            Ok(RgbImage::from_raw(width, height, data).map(DynamicImage::ImageRgb8))
        }
        _ => Ok(None),
    }
}

/// Pillow takes 255 for no ink, as Adobe does, and black off what each other ink leaves (Convert.c, cmyk2rgb; a product over 255 is rounded by shifts).
fn rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    [c, m, y].map(|left| {
        let product = u32::from(255 - left) * u32::from(k) + 128;
        k.saturating_sub((((product >> 8) + product) >> 8) as u8)
    })
}
