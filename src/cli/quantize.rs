use std::path::{Path, PathBuf};

use crate::data::images;
use crate::error::{Error, Result};
use crate::models::config::read_text;
use crate::models::hub;
use crate::models::int8::{self, Example};
use crate::models::vlm::Vlm;
use crate::mpa::progress::Progress;
use crate::quant::Folds;
use crate::tensor::Device;

use super::guard::NewFolder;
use super::{Output, args, compute};

/// What is asked about the pictures of a calibration.
const QUESTION: &str = "Describe what you see, and read out what is written.";
/// Bytes of the largest text to calibrate with.
const MAX_TEXT: u64 = 16 << 20;

pub fn run(args: &args::Quantize, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    NewFolder::check(&args.out)?;
    let folder = hub::resolve(&args.model)?;
    let name = folder.to_str().ok_or_else(|| Error::input(&folder, "the path is not UTF-8"))?;
    let mut vlm = Vlm::load(name, None)?;
    if vlm.is_int8() {
        return Err(Error::input(&folder, "is int8 already"));
    }
    let folds = match &args.calibration {
        None => Folds::new(),
        Some(path) => {
            let (device, why) = Device::choose(compute.backend, compute.device)?;
            progress.note(&format!("device: {device} ({why})"));
            let mut model = Vlm::load(name, None)?.to_device(&device, compute::dtype(compute))?;
            calibrate(&mut model, args, path, progress)?
        }
    };
    let rotation = if args.no_rotation { 1 } else { int8::ROTATION };
    let out = NewFolder::begin(&args.out)?;
    let written = int8::write(&mut vlm, args.parts, &folds, rotation, &args.out)?;
    out.done()?;
    let text = format!(
        "{}: {} layers in int8, {:.1} MB of {:.1} MB",
        args.out.display(),
        written.layers,
        written.bytes as f64 / 1e6,
        written.bytes_before as f64 / 1e6
    );
    Output::new(&written, text)
}

/// Reads the pictures of a folder, or a text.
fn calibrate(vlm: &mut Vlm, args: &args::Quantize, path: &Path, progress: &Progress) -> Result<Folds> {
    if !path.is_dir() {
        let text = read_text(path, MAX_TEXT)?;
        if text.trim().is_empty() {
            return Err(Error::input(path, "has no text to calibrate with"));
        }
        return int8::calibrate(vlm, args.parts, std::iter::once(Ok(Example::Text(text))));
    }
    let mut pictures = images::list(path)?;
    if pictures.is_empty() {
        return Err(Error::input(path, "has no pictures (.png, .jpg, .jpeg, .webp)"));
    }
    pictures.truncate(args.pictures);
    let mut meter = progress.start("calibrate", pictures.len(), 0);
    // As in every stage, one that cannot be read is no reason to leave the others.
    let images = vlm.vision()?.images.clone();
    let read = |path: &PathBuf| {
        meter.advance(1);
        let picture = images::read(path).and_then(|picture| {
            images.plan(picture.width, picture.height)?;
            Ok(Example::Picture(picture, QUESTION.to_string()))
        });
        picture.map_err(|error| progress.warn(&format!("skipped {}: {error}", path.display()))).ok()
    };
    let examples = pictures.iter().filter_map(read).map(Ok);
    let folds = int8::calibrate(vlm, args.parts, examples);
    meter.finish();
    folds
}
