//! What comes into each layer, channel by channel, while a model reads examples.
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::models::image::Rgb;
use crate::models::prompt::{Content, Message};
use crate::models::vlm::{Prompt, Vlm};
use crate::quant::{self, Folds, Maxima};

use super::Parts;

/// Tokens of a text that are read together.
const WINDOW: usize = 512;
/// Rows of the head's input that are looked at together.
const HEAD_ROWS: usize = 256;

/// Something to read.
pub enum Example {
    /// With this question, as a user's turn.
    Picture(Rgb, String),
    Text(String),
}

/// The factors that smooth the layers of `parts`, after the model, which is not int8 yet, has read the examples.
pub fn calibrate(
    vlm: &mut Vlm,
    parts: Parts,
    examples: impl Iterator<Item = Result<Example>>,
) -> Result<Folds> {
    let layers = vlm.int8_layers(parts)?;
    let weights = columns(vlm, &layers)?;
    vlm.visit_linears(&mut |name, linear| {
        linear.seen = layers.contains(name).then(|| Mutex::new(vec![0.0; linear.inputs()]));
    });
    let mut count = 0;
    let mut outcome = Ok(());
    for example in examples {
        outcome = example.and_then(|example| read(vlm, &example, parts));
        if outcome.is_err() {
            break;
        }
        count += 1;
    }
    let mut inputs = Maxima::new();
    vlm.visit_linears(&mut |name, linear| {
        if let Some(seen) = linear.seen.take() {
            inputs.insert(name.to_string(), seen.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
    });
    outcome?;
    if count == 0 {
        return Err(Error::Usage("the calibration has nothing to read".into()));
    }
    let mut groups = vlm.text.groups();
    if let Some(side) = &vlm.vision {
        groups.extend(side.tower.groups());
    }
    groups.retain(|group| group.readers.iter().all(|reader| layers.contains(reader)));
    quant::folds(&groups, &inputs, &weights)
}

/// The largest weight of each column of the layers.
fn columns(vlm: &mut Vlm, layers: &BTreeSet<String>) -> Result<Maxima> {
    let mut maxima = Maxima::new();
    let mut outcome = Ok(());
    vlm.visit_linears(&mut |name, linear| {
        if !layers.contains(name) || outcome.is_err() {
            return;
        }
        match linear.weight.need_dense("a calibration").and_then(|w| quant::column_maxima(&w.value)) {
            Ok(columns) => {
                maxima.insert(name.to_string(), columns);
            }
            Err(error) => outcome = Err(error),
        }
    });
    outcome.map(|()| maxima)
}

fn read(vlm: &Vlm, example: &Example, parts: Parts) -> Result<()> {
    match example {
        Example::Picture(picture, question) => {
            let side = vlm.vision()?;
            let tiles = side.images.process(picture)?;
            let grids = [(tiles.rows, tiles.cols)];
            let content = vec![Content::Image, Content::Text(question.clone())];
            let ids = vlm.encode(&[Message::new("user", content)], &grids, true)?;
            let features = vlm.features(&[&tiles])?;
            through(vlm, &Prompt { ids: &ids, features: features.iter().collect() }, &grids, parts)
        }
        Example::Text(text) => {
            let ids = vlm.prompter.encode_text(text)?;
            let mut windows = ids.chunks(WINDOW);
            windows.try_for_each(|ids| through(vlm, &Prompt { ids, features: Vec::new() }, &[], parts))
        }
    }
}

fn through(vlm: &Vlm, prompt: &Prompt, grids: &[(usize, usize)], parts: Parts) -> Result<()> {
    let x = vlm.states(prompt, grids)?;
    if parts == Parts::Text {
        return Ok(());
    }
    for first in (0..x.rows()).step_by(HEAD_ROWS) {
        let rows = x.slice(first..x.rows().min(first + HEAD_ROWS))?;
        vlm.text.logits(rows, crate::models::linear::Pass::Infer)?;
    }
    Ok(())
}
