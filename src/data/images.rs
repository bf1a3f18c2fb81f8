//! Picture files: PNG, JPEG and WebP to 8-bit RGB, whatever they are called.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::error::{Error, Result};
use crate::models::image::Rgb;

mod jpeg;
mod orientation;

/// Pixels of the largest picture that is decoded: where Pillow, too, takes a picture for an attack (twice its warning's 89,478,485).
pub const MAX_PIXELS: u64 = 2 * 89_478_485;

/// Bytes of the largest file that is read.
pub const MAX_FILE: u64 = 1 << 30;

/// Extensions that `list` takes for pictures, in lower case.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Files that the folder of a run, and that of a grid, has from its beginning: what else is in it, and in folders that it links to, are no pictures
/// of the folder around it.
const MARKS: [&str; 2] = ["config.started.toml", "inputs.json"];

/// Whether a folder is one that this program fills.
pub fn is_output(folder: &Path) -> bool {
    MARKS.iter().any(|mark| folder.join(mark).is_file())
}

/// The picture in a file, known by its content. Turned as its EXIF or XMP says; gray is replicated, what is transparent lies
/// over white (as transformers' processors have it), of 16 bits the upper 8 are kept. Memory: the file and at most 16 bytes a pixel.
pub fn read(path: &Path) -> Result<Rgb> {
    decode(&whole(path)?).map_err(|what| Error::input(path, what))
}

fn whole(path: &Path) -> Result<Vec<u8>> {
    let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::input(path, "expected a picture file, got something that is not a file"));
    }
    if meta.len() > MAX_FILE {
        return Err(Error::input(path, format!("expected at most {MAX_FILE} bytes, got {}", meta.len())));
    }
    fs::read(path).map_err(|e| Error::io(path, e))
}

/// Width and height of the picture that `read` gives, from the beginning of its file.
pub fn size(path: &Path) -> Result<(usize, usize)> {
    let opened = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let reader = opened.map_err(|e| Error::io(path, e))?;
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let ((width, height), orientation) = match reader.into_decoder() {
        Ok(mut decoder) => (decoder.dimensions(), orientation::of(&mut decoder)),
        Err(e) => {
            // As `decode`; of what is no JPEG no more than the beginning is read.
            let size = if is_jpeg { jpeg::size(&whole(path)?) } else { None };
            let size = size.ok_or_else(|| Error::input(path, format!("not a picture: {e}")))?;
            (size, Orientation::NoTransforms)
        }
    };
    let turned = matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    Ok(if turned { (height as usize, width as usize) } else { (width as usize, height as usize) })
}

/// What `read` gives. What is wrong with the picture is said without the path: for files that must not depend on where they lie. An error is
/// what may be no fault of the picture, such as a disk that does not answer.
pub fn try_read(path: &Path) -> Result<Result<Rgb, String>> {
    match read(path) {
        Ok(picture) => Ok(Ok(picture)),
        Err(error) if error.exit_code() != 2 => Err(error),
        Err(Error::Input { what, .. }) => Ok(Err(what)),
        Err(Error::Io { source, .. }) => Ok(Err(source.to_string())),
        Err(other) => Ok(Err(other.to_string())),
    }
}

/// The pictures of a folder and of the folders in it, by extension, sorted by the bytes of their paths. Hidden files and folders are
/// skipped, and those of runs and grids; links are followed, but not into a folder that is being listed.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut pictures = Vec::new();
    walk(folder, &mut Vec::new(), &mut pictures)?;
    pictures.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(pictures)
}

fn walk(folder: &Path, above: &mut Vec<PathBuf>, pictures: &mut Vec<PathBuf>) -> Result<()> {
    let real = folder.canonicalize().map_err(|e| Error::io(folder, e))?;
    if above.contains(&real) {
        return Ok(());
    }
    above.push(real);
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            if !is_output(&path) {
                walk(&path, above, pictures)?;
            }
        } else if is_picture(&path) {
            pictures.push(path);
        }
    }
    above.pop();
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|ext| EXTENSIONS.iter().any(|known| ext.eq_ignore_ascii_case(known)))
}

/// The picture in `bytes`, or what is wrong with them.
fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
        Ok(other) => return Err(format!("expected PNG, JPEG or WebP, got {other:?}")),
        Err(_) => return Err(format!("expected PNG, JPEG or WebP, got {}", beginning(bytes))),
    };
    let wrong = |e: image::ImageError| format!("not a whole {format:?} picture: {e}");
    if !is_complete(format, bytes) {
        return Err(format!(
            "not a whole {format:?} picture: the file ends too early ({} bytes)",
            bytes.len()
        ));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    reader.limits(limits);
    let (decoder, (width, height), orientation) = match reader.into_decoder() {
        Ok(mut decoder) => {
            let (size, orientation) = (decoder.dimensions(), orientation::of(&mut decoder));
            (Some(decoder), size, orientation)
        }
        // libjpeg, which Pillow reads them with, takes headers that the crate `image` does not.
        Err(e) => {
            let size = if format == ImageFormat::Jpeg { jpeg::size(bytes) } else { None };
            (None, size.ok_or_else(|| wrong(e))?, Orientation::NoTransforms)
        }
    };
    if !(1..=MAX_PIXELS).contains(&(u64::from(width) * u64::from(height))) {
        return Err(format!("expected 1 to {MAX_PIXELS} pixels, got {width}x{height}"));
    }
    let known = (format == ImageFormat::Jpeg).then(|| jpeg::decode(bytes, width, height)).flatten();
    let mut image = match (known, decoder) {
        (Some(decoded), _) => decoded.map_err(|e| format!("not a whole {format:?} picture: {e}"))?,
        (None, Some(decoder)) => DynamicImage::from_decoder(decoder).map_err(wrong)?,
        (None, None) => return Err(format!("{format:?} of colours that are not understood")),
    };
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    let data =
        to_rgb(image).ok_or_else(|| format!("expected 8 or 16 bits a channel in this {format:?} picture"))?;
    Ok(Rgb { width, height, data })
}

/// What a file that is no picture begins with.
fn beginning(bytes: &[u8]) -> String {
    match bytes {
        [] => "an empty file".to_string(),
        _ => format!("a file that begins with \"{}\"", bytes[..bytes.len().min(16)].escape_ascii()),
    }
}

fn to_rgb(image: DynamicImage) -> Option<Vec<u8>> {
    // Pillow clips 16-bit gray at 255, which leaves white; the upper half is what it keeps of 16-bit colour.
    let upper = |v: u16| (v >> 8) as u8;
    Some(match image {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageLuma8(p) => spread(p.as_raw(), 1, |v| v),
        DynamicImage::ImageLumaA8(p) => spread(p.as_raw(), 2, |v| v),
        DynamicImage::ImageRgba8(p) => spread(p.as_raw(), 4, |v| v),
        DynamicImage::ImageLuma16(p) => spread(p.as_raw(), 1, upper),
        DynamicImage::ImageLumaA16(p) => spread(p.as_raw(), 2, upper),
        DynamicImage::ImageRgb16(p) => spread(p.as_raw(), 3, upper),
        DynamicImage::ImageRgba16(p) => spread(p.as_raw(), 4, upper),
        _ => return None,
    })
}

/// Pixels of 1 to 4 channels (gray, gray and alpha, RGB, RGBA) as RGB.
fn spread<T: Copy>(raw: &[T], channels: usize, to_u8: impl Fn(T) -> u8) -> Vec<u8> {
    let colours = if channels < 3 { [0; 3] } else { [0, 1, 2] };
    let alpha = channels.is_multiple_of(2).then_some(channels - 1);
    let mut data = Vec::with_capacity(raw.len() / channels * 3);
    for pixel in raw.chunks_exact(channels) {
        let rgb = colours.map(|c| to_u8(pixel[c]));
        data.extend(alpha.map_or(rgb, |a| rgb.map(|v| over_white(v, to_u8(pixel[a])))));
    }
    data
}

/// Pillow's alpha_composite over opaque white: 7 bits of fraction, and a division by 255 made of shifts.
fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// The file holds all that its headers announce. The JPEG decoder fills what is missing with gray, and the WebP decoder asks for
/// memory before it knows whether the file goes on; PNG is checked by its decoder.
fn is_complete(format: ImageFormat, bytes: &[u8]) -> bool {
    match format {
        ImageFormat::Jpeg => jpeg_ends(bytes),
        ImageFormat::WebP => riff_fits(bytes),
        _ => true,
    }
}

/// Walks the segments of a JPEG file to its end marker.
fn jpeg_ends(bytes: &[u8]) -> bool {
    const END: u8 = 0xD9;
    let mut at = 2;
    loop {
        let Some(&[first, second]) = bytes.get(at..at + 2) else { return false };
        match (first, second) {
            (0xFF, END) => return true,
            // Fill bytes, a stuffed zero, and markers that stand alone.
            (0xFF, 0xFF) => at += 1,
            (0xFF, 0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            (0xFF, _) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
            // Data of a scan.
            _ => at += 1,
        }
    }
}

/// Every chunk of a RIFF file lies within it.
fn riff_fits(bytes: &[u8]) -> bool {
    let size = |at: usize| {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(|b| u32::from_le_bytes(b) as usize)
    };
    let Some(end) = size(4).map(|n| n + 8).filter(|&end| end <= bytes.len()) else { return false };
    let mut at = 12;
    while at + 8 <= end {
        match size(at + 4) {
            // A chunk of odd length is followed by a byte of padding, which some writers leave out at the end.
            Some(n) if at + 8 + n <= bytes.len() => at += 8 + n + n % 2,
            _ => return false,
        }
    }
    true
}
