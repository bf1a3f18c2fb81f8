//! Samples made ready for a step: token ids, the targets among them, and the pictures as tiles or as kept features.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use crate::data::images;
use crate::error::{Error, Result};
use crate::models::image::{Rgb, Tiles};
use crate::models::prompt::{Content, Message};
use crate::models::rope::Position;
use crate::models::vlm::Vlm;
use crate::ops::attention::Span;
use crate::random;
use crate::tensor::{Device, Tensor};

/// Bytes of picture features that are kept; what goes beyond is computed again.
const KEEP_BYTES: usize = 4 << 30;

/// A picture of a sample; two are the same picture if the path, or the `Arc`, is the same.
#[derive(Clone, Debug)]
pub enum Picture {
    File(PathBuf),
    Pixels(Arc<Rgb>),
}

/// One supervised turn: the loss is on the answer and the end of the turn.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What messages call it.
    pub id: String,
    pub images: Vec<Picture>,
    pub prompt: String,
    pub answer: String,
}

impl Sample {
    /// Tells it from others, wherever its pictures lie.
    pub(super) fn key(&self) -> u64 {
        let words = [random::hash(&self.prompt), random::hash(&self.answer)];
        self.images.iter().fold(random::mix(0, &words), |key, picture| match picture {
            Picture::File(path) => {
                random::mix(key, &[random::hash(&path.file_name().unwrap_or_default().to_string_lossy())])
            }
            Picture::Pixels(picture) => random::mix(key, &[random::hash_bytes(&picture.data)]),
        })
    }
}

/// A picture made ready.
pub enum Seen {
    /// For a vision side that is trained.
    Tiles(Tiles),
    /// For a frozen one: what the connector gave, [F, C], in main memory.
    Features { grid: (usize, usize), rows: Tensor },
}

impl Seen {
    fn grid(&self) -> (usize, usize) {
        match self {
            Seen::Tiles(tiles) => (tiles.rows, tiles.cols),
            Seen::Features { grid, .. } => *grid,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Seen::Tiles(tiles) => tiles.pixels.values.len(),
            Seen::Features { rows, .. } => rows.len() * rows.dtype().size(),
        }
    }
}

/// A sample made ready.
pub struct Prepared {
    pub ids: Vec<u32>,
    /// Where each token is.
    pub positions: Vec<Position>,
    /// (index among ids, token that should follow it)
    pub targets: Vec<(u32, u32)>,
    pub pictures: Vec<Arc<Seen>>,
}

/// What pictures that are the same have in common.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    File(PathBuf),
    Pixels(usize),
}

impl Picture {
    pub(super) fn key(&self) -> Key {
        match self {
            Picture::File(path) => Key::File(path.clone()),
            Picture::Pixels(rgb) => Key::Pixels(Arc::as_ptr(rgb) as usize),
        }
    }

    /// Rows and columns of its tiles, or why the model does not take it.
    fn grid(&self, vlm: &Vlm) -> Result<Result<(usize, usize), String>> {
        let (width, height) = match self {
            Picture::File(path) => images::size(path)?,
            Picture::Pixels(rgb) => (rgb.width, rgb.height),
        };
        match (vlm.vision()?.images.plan(width, height), self) {
            (Ok(plan), _) => Ok(Ok((plan.rows, plan.cols))),
            (Err(error @ Error::Picture { .. }), Picture::File(path)) => {
                Ok(Err(format!("{}: {error}", path.display())))
            }
            (Err(error @ Error::Picture { .. }), Picture::Pixels(_)) => Ok(Err(error.to_string())),
            (Err(error), _) => Err(error),
        }
    }

    fn tiles(&self, vlm: &Vlm) -> Result<Tiles> {
        match self {
            Picture::File(path) => vlm.vision()?.images.process(&images::read(path)?),
            Picture::Pixels(rgb) => vlm.vision()?.images.process(rgb),
        }
    }
}

/// Features of pictures, as long as the vision side that computed them is frozen.
#[derive(Default)]
pub struct Kept {
    pictures: HashMap<Key, Arc<Seen>>,
    bytes: usize,
}

impl Kept {
    fn add(&mut self, key: Key, seen: &Arc<Seen>) {
        let bytes = seen.bytes();
        if self.bytes + bytes <= KEEP_BYTES {
            self.bytes += bytes;
            self.pictures.insert(key, Arc::clone(seen));
        }
    }
}

/// Prepares samples together: each different picture is read once. With a frozen vision side there is `kept`: those that are not in it
/// go through the tower in one pass with each other, and are kept.
pub fn prepare(vlm: &Vlm, samples: &[&Sample], mut kept: Option<&mut Kept>) -> Result<Vec<Prepared>> {
    let mut places: HashMap<Key, Arc<Seen>> = HashMap::new();
    let (mut new, mut fresh) = (HashSet::new(), Vec::new());
    for picture in samples.iter().flat_map(|s| &s.images) {
        let key = picture.key();
        match kept.as_ref().and_then(|kept| kept.pictures.get(&key)) {
            Some(seen) => drop(places.insert(key, Arc::clone(seen))),
            None if new.insert(key) => fresh.push(picture),
            None => {}
        }
    }
    let tiles: Vec<Tiles> = fresh.par_iter().map(|p| p.tiles(vlm)).collect::<Result<_>>()?;
    for (picture, seen) in fresh.iter().zip(look(vlm, tiles, kept.is_some())?) {
        if let Some(kept) = &mut kept {
            kept.add(picture.key(), &seen);
        }
        places.insert(picture.key(), seen);
    }
    let one = |sample: &&Sample| {
        let of_sample = sample.images.iter().filter_map(|p| places.get(&p.key()));
        let pictures: Vec<Arc<Seen>> = of_sample.map(Arc::clone).collect();
        let grids: Vec<_> = pictures.iter().map(|p| p.grid()).collect();
        let prepared = Prepared { pictures, ..encode(vlm, sample, &grids)? };
        match too_long(vlm, &prepared) {
            Some(what) => Err(Error::Usage(format!("the training sample {:?}: {what}", sample.id))),
            None => Ok(prepared),
        }
    };
    samples.par_iter().map(one).collect()
}

fn look(vlm: &Vlm, tiles: Vec<Tiles>, frozen: bool) -> Result<Vec<Arc<Seen>>> {
    if !frozen {
        return Ok(tiles.into_iter().map(|t| Arc::new(Seen::Tiles(t))).collect());
    }
    let rows = vlm.features(&tiles.iter().collect::<Vec<_>>())?;
    let features = |(t, rows): (Tiles, Tensor)| {
        Ok(Arc::new(Seen::Features { grid: (t.rows, t.cols), rows: rows.to_device(&Device::Cpu)? }))
    };
    tiles.into_iter().zip(rows).map(features).collect()
}

/// Samples of a training set that the model takes.
pub struct Fitting<'a> {
    pub samples: Vec<&'a Sample>,
    /// Of each of them: how many, and how many of them are of pictures.
    pub tokens: Vec<(usize, usize)>,
    /// Id of each of the others, and why it is none.
    pub skipped: Vec<(String, String)>,
}

/// Which samples the model takes; their pictures are only opened. An error if there are none.
pub fn fitting<'a>(vlm: &Vlm, samples: &'a [Sample]) -> Result<Fitting<'a>> {
    let lengths: Vec<_> = samples.par_iter().map(|sample| length(vlm, sample)).collect::<Result<_>>()?;
    let mut fitting = Fitting { samples: Vec::new(), tokens: Vec::new(), skipped: Vec::new() };
    for (sample, length) in samples.iter().zip(lengths) {
        match length {
            Ok(tokens) => {
                fitting.samples.push(sample);
                fitting.tokens.push(tokens);
            }
            Err(reason) => fitting.skipped.push((sample.id.clone(), reason)),
        }
    }
    match (fitting.samples.first(), fitting.skipped.first()) {
        (Some(_), _) => Ok(fitting),
        (None, Some((id, reason))) => {
            Err(Error::Usage(format!("none of {} training samples fits: {id:?}: {reason}", samples.len())))
        }
        (None, None) => Err(Error::Usage("no training samples".into())),
    }
}

/// Tokens of a sample and of its pictures, or why the model does not take it.
fn length(vlm: &Vlm, sample: &Sample) -> Result<Result<(usize, usize), String>> {
    let mut grids = Vec::with_capacity(sample.images.len());
    for picture in &sample.images {
        match picture.grid(vlm)? {
            Ok(grid) => grids.push(grid),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    let prepared = encode(vlm, sample, &grids)?;
    let tokens = (prepared.ids.len(), vlm.picture_tokens(&prepared.ids).len());
    Ok(too_long(vlm, &prepared).map_or(Ok(tokens), Err))
}

fn too_long(vlm: &Vlm, prepared: &Prepared) -> Option<String> {
    let (tokens, most) = (prepared.ids.len(), vlm.config.text.max_positions);
    let what = || format!("{tokens} tokens, expected at most {most} (max_position_embeddings)");
    (tokens > most).then(what)
}

/// A sample but for its pictures, of which only the grids matter.
fn encode(vlm: &Vlm, sample: &Sample, grids: &[(usize, usize)]) -> Result<Prepared> {
    let mut content: Vec<Content> = grids.iter().map(|_| Content::Image).collect();
    content.push(Content::Text(sample.prompt.clone()));
    let (ids, start) = vlm.encode_answered(&[Message::new("user", content)], grids, &sample.answer)?;
    let targets = (start.max(1)..ids.len()).map(|i| (i as u32 - 1, ids[i])).collect();
    let (positions, _) = vlm.positions(&ids, grids)?;
    Ok(Prepared { ids, positions, targets, pictures: Vec::new() })
}

/// A micro-batch as one ragged sequence of tokens, without padding.
pub struct Packed<'a> {
    pub ids: Vec<u32>,
    pub positions: Vec<Position>,
    pub spans: Vec<Span>,
    /// Rows with a target, and the targets.
    pub target_rows: Vec<u32>,
    pub targets: Vec<u32>,
    /// Each different picture once, in order of appearance.
    pub pictures: Vec<&'a Seen>,
    /// Picture token i stands at row places[i] and gets row sources[i] of the pictures' features, concatenated.
    pub places: Vec<u32>,
    pub sources: Vec<u32>,
}

pub fn pack<'a>(vlm: &Vlm, batch: &'a [Arc<Prepared>]) -> Result<Packed<'a>> {
    let mut packed = Packed {
        ids: vec![],
        positions: vec![],
        spans: vec![],
        target_rows: vec![],
        targets: vec![],
        pictures: vec![],
        places: vec![],
        sources: vec![],
    };
    let mut first_row: HashMap<*const Seen, u32> = HashMap::new();
    let mut rows = 0;
    for sample in batch {
        let (start, len) = (packed.ids.len(), sample.ids.len());
        packed.spans.push(Span { q_start: start, q_len: len, k_start: start, k_len: len });
        packed.ids.extend_from_slice(&sample.ids);
        packed.positions.extend_from_slice(&sample.positions);
        for &(row, target) in &sample.targets {
            packed.target_rows.push(start as u32 + row);
            packed.targets.push(target);
        }
        packed.places.extend(vlm.picture_tokens(&sample.ids).iter().map(|p| p + start as u32));
        for picture in &sample.pictures {
            let count = match picture.as_ref() {
                Seen::Tiles(tiles) => vlm.vision()?.rows(tiles)? as u32,
                Seen::Features { rows, .. } => rows.rows() as u32,
            };
            let first = *first_row.entry(Arc::as_ptr(picture)).or_insert_with(|| {
                packed.pictures.push(picture);
                rows += count;
                rows - count
            });
            packed.sources.extend(first..first + count);
        }
    }
    if packed.places.len() != packed.sources.len() {
        return Err(Error::Failure(format!(
            "{} picture tokens for {} rows of picture features",
            packed.places.len(),
            packed.sources.len()
        )));
    }
    Ok(packed)
}
