//! How a picture is to be turned, as Pillow's `exif_transpose` has it: EXIF says it, or where that has no such tag XMP (Pillow's Image.getexif).
use image::ImageDecoder;
use image::metadata::Orientation;

/// What cannot be read says nothing: the picture is still one.
pub fn of(decoder: &mut impl ImageDecoder) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten();
    let tag = exif.as_deref().and_then(in_exif);
    let tag = tag.or_else(|| in_xmp(&decoder.xmp_metadata().ok().flatten()?));
    tag.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// The tag of the first directory (EXIF 2.3, 4.6.4); 0 for a value that is no orientation.
fn in_exif(mut data: &[u8]) -> Option<u8> {
    const ORIENTATION: u32 = 0x112;
    const ENTRY: usize = 12;
    // Some writers put in front what only JPEG has there.
    while let Some(rest) = data.strip_prefix(b"Exif\0\0") {
        data = rest;
    }
    let big = match data.get(..4)? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let number = |at: usize, bytes: usize| {
        let field = data.get(at..at.checked_add(bytes)?)?;
        let add = |sum: u32, &byte: &u8| sum << 8 | u32::from(byte);
        Some(if big { field.iter().fold(0, add) } else { field.iter().rev().fold(0, add) })
    };
    let start = number(4, 4)? as usize;
    let mut entries = (0..number(start, 2)? as usize).map(|i| start + 2 + i * ENTRY);
    let entry = entries.find(|&at| number(at, 2) == Some(ORIENTATION))?;
    // SHORT and LONG; Pillow turns nothing for a BYTE.
    let bytes = match number(entry + 2, 2)? {
        3 => 2,
        4 => 4,
        _ => return Some(0),
    };
    let one = number(entry + 4, 4)? == 1;
    Some(number(entry + 8, bytes).filter(|_| one).and_then(|value| u8::try_from(value).ok()).unwrap_or(0))
}

/// Pillow's `tiff:Orientation(="|>)([0-9])`.
fn in_xmp(text: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    text.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME).find_map(|(at, _)| {
        let rest = &text[at + NAME.len()..];
        let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        digit.is_ascii_digit().then(|| digit - b'0')
    })
}
