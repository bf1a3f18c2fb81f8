//! Picture files: formats, colour types, orientation, and files that are broken, forged or no pictures.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageBuffer, ImageFormat};
use mpa::data::images::{MAX_PIXELS, list, read, size};
use mpa::error::{Error, Result};
use mpa::models::image::Rgb;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::memory;

const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

/// A picture of 16-pixel squares, each of a colour of its own, so that turning it shows.
fn picture(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(ImageBuffer::from_fn(width, height, |x, y| {
        image::Rgb([(40 + x / 16 * 70) as u8, (30 + y / 16 * 90) as u8, 120])
    }))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn read_bytes(bytes: &[u8]) -> Result<Rgb> {
    let folder = TempDir::new().unwrap();
    // The name says nothing true about the content.
    let path = folder.path().join("picture.txt");
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

#[track_caller]
fn message(bytes: &[u8]) -> String {
    let error = read_bytes(bytes).unwrap_err();
    assert!(matches!(error, Error::Input { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("picture.txt"), "{message}");
    message
}

#[test]
fn formats_are_known_by_content() {
    let image = picture(48, 32);
    let want = image.to_rgb8().into_raw();
    for format in FORMATS {
        let got = read_bytes(&encoded(&image, format)).unwrap();
        assert_eq!((got.width, got.height), (48, 32), "{format:?}");
        let far = got.data.iter().zip(&want).map(|(g, w)| g.abs_diff(*w)).max().unwrap();
        assert!(far <= if format == ImageFormat::Jpeg { 4 } else { 0 }, "{format:?}: {far}");
    }
}

/// Against Pillow 13.0.0 with libjpeg-turbo, by a polynomial hash of all values: every subsampling, gray, RGB, CMYK, progressive, with restarts, odd sizes.
#[test]
fn jpegs_have_pillows_values() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/jpeg"));
    for (name, want) in [
        ("422", 0x0bc1_c371_c45a_a2b3),
        ("444", 0x7a64_98ec_9744_f019),
        ("base", 0x639c_6057_7d06_b920),
        ("cmyk", 0x8a47_4c5d_c631_efdf),
        ("cmyk_unmarked", 0x8a47_4c5d_c631_efdf),
        ("gray", 0x7bf4_57b0_94a7_4b0f),
        ("h1", 0xfa45_1d27_1711_5aeb),
        ("keeprgb", 0xa8ba_fac6_71e0_791e),
        ("oddsize", 0x65be_a858_a5e2_6bbe),
        ("oddsize_prog", 0x444f_f046_1f1d_1f72),
        ("prog", 0x639c_6057_7d06_b920),
        ("rst", 0x639c_6057_7d06_b920),
        ("tiny", 0x3c06_8f57_14c8_2035),
        ("w1", 0xe576_8001_4120_f95a_u64),
        ("ycck", 0xc612_ceac_7d69_e9a7),
    ] {
        let got = read(&folder.join(name).with_extension("jpg")).unwrap();
        let hash = got.data.iter().fold(0u64, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        assert_eq!(hash, want, "{name}");
    }
}

/// The value of every pixel of a one-colour picture after reading.
fn read_colour(image: DynamicImage) -> [u8; 3] {
    let got = read_bytes(&encoded(&image, ImageFormat::Png)).unwrap();
    let first = [got.data[0], got.data[1], got.data[2]];
    assert!(got.data.chunks(3).all(|p| p == first));
    first
}

#[test]
fn every_colour_type_becomes_rgb() {
    use DynamicImage as D;
    let (w, h) = (3, 2);
    assert_eq!(read_colour(D::ImageLuma8(ImageBuffer::from_pixel(w, h, image::Luma([77])))), [77; 3]);
    assert_eq!(read_colour(D::ImageLumaA8(ImageBuffer::from_pixel(w, h, image::LumaA([77, 255])))), [77; 3]);
    assert_eq!(read_colour(D::ImageLumaA8(ImageBuffer::from_pixel(w, h, image::LumaA([77, 0])))), [255; 3]);
    let half = image::Rgba([10, 100, 200, 128]);
    assert_eq!(read_colour(D::ImageRgba8(ImageBuffer::from_pixel(w, h, half))), [132, 177, 227]);
    assert_eq!(read_colour(D::ImageLuma16(ImageBuffer::from_pixel(w, h, image::Luma([0x4dff])))), [0x4d; 3]);
    let wide = image::Rgb([0x01ff, 0x7f80, 0xff00]);
    assert_eq!(read_colour(D::ImageRgb16(ImageBuffer::from_pixel(w, h, wide))), [0x01, 0x7f, 0xff]);
    let wide = image::Rgba([0x0a00, 0x6400, 0xc800, 0x80ff]);
    assert_eq!(read_colour(D::ImageRgba16(ImageBuffer::from_pixel(w, h, wide))), [132, 177, 227]);
}

/// `jpeg` with an EXIF segment that holds nothing but an orientation, in either byte order.
fn with_orientation(jpeg: &[u8], orientation: u16, big_endian: bool) -> Vec<u8> {
    with_segment(jpeg, 1, &exif(&[(0x112, orientation)], false, big_endian))
}

/// An application segment behind the first two bytes of a JPEG.
fn with_segment(jpeg: &[u8], number: u8, content: &[u8]) -> Vec<u8> {
    let head = [0xFF, 0xE0 + number];
    let len = (content.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &head, &len, content, &jpeg[2..]].concat()
}

/// EXIF of one directory of such tags and values, SHORT or LONG.
fn exif(tags: &[(u16, u16)], long: bool, big_endian: bool) -> Vec<u8> {
    let u16s = |v: u16| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
    let u32s = |v: u32| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
    let mut exif = b"Exif\0\0".to_vec();
    exif.extend(if big_endian { b"MM" } else { b"II" });
    exif.extend(u16s(42));
    exif.extend(u32s(8));
    exif.extend(u16s(tags.len() as u16));
    for &(tag, value) in tags {
        exif.extend(u16s(tag));
        exif.extend(u16s(if long { 4 } else { 3 }));
        exif.extend(u32s(1));
        match long {
            true => exif.extend(u32s(value.into())),
            false => exif.extend([u16s(value), [0; 2]].concat()),
        }
    }
    // No further directory.
    exif.extend([0; 4]);
    exif
}

/// As Pillow 13.0.0 does it, of which these cases are.
#[test]
fn orientation_is_found_where_pillow_finds_it() {
    let plain = encoded(&picture(48, 32), ImageFormat::Jpeg);
    let xmp = |text: &str| [b"http://ns.adobe.com/xap/1.0/\0", text.as_bytes()].concat();
    let (attribute, element) =
        (xmp("<a tiff:Orientation=\"6\"/>"), xmp("<tiff:Orientation>6</tiff:Orientation>"));
    let read_both = |bytes: &[u8]| {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("picture");
        std::fs::write(&path, bytes).unwrap();
        let picture = read(&path).unwrap();
        assert_eq!(size(&path).unwrap(), (picture.width, picture.height));
        picture
    };
    let want = read_both(&with_orientation(&plain, 6, false));
    assert_eq!((want.width, want.height), (32, 48));
    for turned in [
        with_segment(&plain, 1, &exif(&[(0x112, 6)], true, false)),
        with_segment(&plain, 1, &exif(&[(0x110, 3), (0x112, 6)], true, true)),
        with_segment(&plain, 1, &attribute),
        with_segment(&plain, 1, &element),
        with_segment(&with_segment(&plain, 1, &attribute), 1, &exif(&[(0x110, 3)], false, false)),
    ] {
        assert_eq!(read_both(&turned), want);
    }
    let stored = read_both(&plain);
    for lies in [
        // EXIF that has the tag is believed, whatever XMP says.
        with_segment(&with_segment(&plain, 1, &attribute), 1, &exif(&[(0x112, 1)], false, false)),
        with_segment(&plain, 1, &exif(&[(0x112, 600)], true, false)),
        with_segment(&plain, 1, &xmp("<a tiff:Orientation='6'/>")),
        with_segment(&plain, 1, &exif(&[(0x112, 6)], true, false)[..20]),
    ] {
        assert_eq!(read_both(&lies), stored);
    }
    // A PNG whose chunk begins as a JPEG's segment does.
    let png = encoded(&picture(48, 32), ImageFormat::Png);
    let content = [b"eXIf", &exif(&[(0x112, 6)], false, true)[..]].concat();
    let chunk =
        [&(content.len() as u32 - 4).to_be_bytes()[..], &content, &crc(&content).to_be_bytes()].concat();
    let turned = read_both(&[&png[..33], &chunk, &png[33..]].concat());
    assert_eq!((turned.width, turned.height), (32, 48));
}

/// libjpeg passes by what the crate `image` takes for a fault: a transform of Adobe's that there is not.
#[test]
fn jpegs_that_libjpeg_reads_are_read() {
    let plain = encoded(&picture(48, 32), ImageFormat::Jpeg);
    let odd = with_segment(&plain, 14, b"Adobe\0\x64\0\0\0\0\x05");
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("odd.jpg");
    std::fs::write(&path, &odd).unwrap();
    assert_eq!(size(&path).unwrap(), (48, 32));
    assert_eq!(read(&path).unwrap(), read_bytes(&plain).unwrap());
}

#[test]
fn orientation_is_honoured() {
    let jpeg = encoded(&picture(48, 32), ImageFormat::Jpeg);
    let stored = read_bytes(&jpeg).unwrap();
    let (w, h) = (stored.width, stored.height);
    for orientation in 0..=9 {
        // Where pixel (x, y) of the upright picture lies in the stored one, from the table of the EXIF standard: 1 = row 0 is the
        // top, column 0 the left side; 2 = top, right; 3 = bottom, right; 4 = bottom, left; 5 = left, top; 6 = right, top;
        // 7 = right, bottom; 8 = left, bottom. Anything else counts as 1.
        let from = |x: usize, y: usize| match orientation {
            2 => (w - 1 - x, y),
            3 => (w - 1 - x, h - 1 - y),
            4 => (x, h - 1 - y),
            5 => (y, x),
            6 => (y, h - 1 - x),
            7 => (w - 1 - y, h - 1 - x),
            8 => (w - 1 - y, x),
            _ => (x, y),
        };
        for big_endian in [false, true] {
            let got = read_bytes(&with_orientation(&jpeg, orientation, big_endian)).unwrap();
            let turned = (5..=8).contains(&orientation);
            assert_eq!((got.width, got.height), if turned { (h, w) } else { (w, h) });
            for y in 0..got.height {
                for x in 0..got.width {
                    let (sx, sy) = from(x, y);
                    let (g, s) = (3 * (y * got.width + x), 3 * (sy * w + sx));
                    assert_eq!(
                        got.data[g..g + 3],
                        stored.data[s..s + 3],
                        "orientation {orientation} at {x}, {y}"
                    );
                }
            }
        }
    }
}

#[test]
fn truncated_files_are_errors() {
    for format in FORMATS {
        let bytes = encoded(&picture(48, 32), format);
        // A PNG is whole without its last chunk, IEND, of 12 bytes.
        let enough = bytes.len() - if format == ImageFormat::Png { 12 } else { 0 };
        for len in 0..enough {
            let message = message(&bytes[..len]);
            assert!(len < 16 || message.contains("not a whole"), "{format:?} {len}: {message}");
        }
    }
}

#[test]
fn what_is_no_picture_is_named() {
    assert!(message(b"").contains("an empty file"));
    assert!(message(b"<html><body>\n404").contains("begins with \"<html><body>\\n404\""));
    assert!(message(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;").contains("got Gif"));
    let folder = TempDir::new().unwrap();
    assert_eq!(read(folder.path()).unwrap_err().exit_code(), 2);
    assert_eq!(read(&folder.path().join("none.png")).unwrap_err().exit_code(), 2);
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

/// A PNG whose header claims width x height.
fn forged_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encoded(&picture(16, 16), ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    mend_checksums(&mut bytes);
    bytes
}

/// A lossless WebP whose header claims width x height (at most 16383 each).
fn forged_webp(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encoded(&picture(16, 16), ImageFormat::WebP);
    let at = bytes.windows(4).position(|w| w == b"VP8L").unwrap() + 9;
    let old = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let new = old & 0xF000_0000 | (height - 1) << 14 | (width - 1);
    bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
    bytes
}

/// A JPEG whose frame header claims width x height.
fn forged_jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = encoded(&picture(16, 16), ImageFormat::Jpeg);
    let at = bytes.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap() + 5;
    bytes[at..at + 2].copy_from_slice(&height.to_be_bytes());
    bytes[at + 2..at + 4].copy_from_slice(&width.to_be_bytes());
    bytes
}

#[test]
fn too_many_pixels_are_refused_before_memory_is_asked_for() {
    for (what, bytes) in [
        ("png", forged_png(100_000, 100_000)),
        ("png, one row", forged_png(MAX_PIXELS as u32 + 1, 1)),
        ("jpeg", forged_jpeg(65_000, 65_000)),
        ("webp", forged_webp(16_383, 16_383)),
    ] {
        let (message, peak) = memory::peak(|| message(&bytes));
        assert!(message.contains("pixels, got"), "{what}: {message}");
        // The decoders keep a few rows or tables; 2 MiB covers a row of the widest picture here (of 300 kB) several times.
        assert!(peak < bytes.len() + (2 << 20), "{what}: {peak} bytes");
    }
}

#[test]
fn folders_are_listed_in_order() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    for name in [
        "b.PNG",
        "a.jpeg",
        "B.webp",
        "c.txt",
        ".hidden.png",
        "z/1.jpg",
        "z/.x/2.jpg",
        "ä.png",
        "a/10.png",
        "a/9.png",
        "png",
    ] {
        std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        std::fs::write(root.join(name), b"").unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(root, root.join("z/loop")).unwrap();
    let want: Vec<PathBuf> = ["B.webp", "a.jpeg", "a/10.png", "a/9.png", "b.PNG", "z/1.jpg", "ä.png"]
        .iter()
        .map(|n| root.join(n))
        .collect();
    assert_eq!(list(root).unwrap(), want);
    assert!(list(Path::new("/nowhere/at/all")).is_err());
    assert!(list(&root.join("a.jpeg")).is_err());
}

/// Seeds of the mutations: every format, with the parts that have parsers of their own (EXIF, alpha, 16 bits).
fn seeds() -> Vec<Vec<u8>> {
    let image = picture(24, 17);
    let alpha = DynamicImage::ImageRgba8(image.to_rgba8());
    let mut seeds: Vec<_> = FORMATS.iter().map(|&format| encoded(&image, format)).collect();
    seeds.push(with_orientation(&seeds[1], 6, false));
    seeds.push(encoded(&alpha, ImageFormat::Png));
    seeds.push(encoded(&alpha, ImageFormat::WebP));
    seeds.push(encoded(&DynamicImage::ImageRgb16(image.to_rgb16()), ImageFormat::Png));
    seeds
}

/// Makes the checksums of a PNG's chunks right again, so that what was changed in them is looked at.
fn mend_checksums(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(size) = bytes.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().unwrap()) as usize) {
        let end = at + 8 + size;
        if end + 4 > bytes.len() {
            return;
        }
        let sum = crc(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_be_bytes());
        at = end + 4;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Broken bytes are an error or a picture, never a panic, and take no more than the documented memory.
    #[test]
    fn mutated_files_do_no_harm(
        which in 0usize..7,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        mend: bool,
    ) {
        let mut bytes = seeds().swap_remove(which);
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if mend && bytes.starts_with(b"\x89PNG") {
            mend_checksums(&mut bytes);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (result, peak) = memory::peak(|| read_bytes(&bytes));
        prop_assert!(peak < 16 * MAX_PIXELS as usize + (2 << 20), "{} bytes", peak);
        match result {
            Ok(picture) => prop_assert_eq!(picture.data.len(), 3 * picture.width * picture.height),
            Err(error) => prop_assert_eq!(error.exit_code(), 2),
        }
    }
}
