//! Requests to a model, and what it makes of them.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::models::engine::{DRAFT, Exchange, Limits, Next, Prepared, Spent};
use crate::models::image::{Rgb, Tiles};
use crate::models::prompt::Message;
use crate::models::rope;
use crate::models::vlm::Vlm;
use crate::ops::sample::Sampling;

#[derive(Clone)]
pub struct Request {
    pub messages: Vec<Message>,
    /// One for each `Content::Image`, in order. The same `Arc` in several requests of a batch goes through the vision tower once.
    pub images: Vec<Arc<Rgb>>,
    /// The same as tiles, or empty: see `Vlm::prepare`.
    pub tiles: Vec<Arc<Tiles>>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Completions wanted; their prompt is computed once.
    pub samples: usize,
    /// Sample i draws from a stream that depends on (seed, i) and nothing else.
    pub seed: u64,
    /// What the model might answer. It goes through the model with the prompt, so that a greedy answer that begins alike costs no steps for what
    /// is alike, and is the same as without; and `Completion::draft_logprob` says how likely it is. With the end of the turn it has up to
    /// `engine::DRAFT` tokens; a longer one counts as none.
    pub draft: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub ids: Vec<u32>,
    /// Without special tokens.
    pub text: String,
    /// The model ended it (an end token, not in `ids`); else max_new_tokens did.
    pub ended: bool,
    /// Mean log-probability of the request's draft and the end of the turn behind it; none without a draft, or where it does not fit.
    pub draft_logprob: Option<f64>,
}

/// Tiles of each different picture of a batch, none of those that the model does not take; and which of them each request has.
type Unique = (Vec<Option<Arc<Tiles>>>, Vec<Vec<usize>>);

impl Vlm {
    /// Cuts the pictures of some requests into tiles ahead of `answer`, which does it otherwise: on another thread, while earlier ones are
    /// being answered. A request with a picture that the model does not take is left as it is: the answer to it says why.
    pub fn prepare(&self, requests: &mut [Request]) -> Result<()> {
        let (tiles, index) = self.unique_tiles(requests)?;
        for (request, pictures) in requests.iter_mut().zip(index) {
            let all = pictures.into_iter().map(|i| tiles[i].clone()).collect::<Option<Vec<_>>>();
            request.tiles = all.unwrap_or_default();
        }
        Ok(())
    }

    /// Completions of a batch, `samples` of them a request, in the order of the requests.
    pub fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>> {
        self.generate_timed(requests).map(|(completions, _)| completions)
    }

    /// The same, and where the time went.
    pub fn generate_timed(&self, requests: &[Request]) -> Result<(Vec<Vec<Completion>>, Spent)> {
        let mut requests = requests.to_vec();
        self.prepare(&mut requests)?;
        // One more than there are, so that their end is seen before the first of them is let in.
        let most = requests.iter().map(|r| r.samples).sum::<usize>() + 1;
        let answers = vec![Vec::new(); requests.len()];
        let mut batch = Batch { requests: requests.into_iter(), answers };
        let spent = self.answer(Limits::completions(most), &mut batch)?;
        Ok((batch.answers, spent))
    }

    /// The request as the model takes it; its pictures are cut into tiles if they are not yet.
    pub(super) fn prepared(&self, request: &mut Request) -> Result<Prepared> {
        if request.samples == 0 {
            return Err(Error::Usage("a request for 0 samples, expected 1 or more".into()));
        }
        if request.tiles.len() < request.images.len() {
            let cut = |image: &Arc<Rgb>| self.vision()?.images.process(image).map(Arc::new);
            request.tiles = request.images.iter().map(cut).collect::<Result<_>>()?;
        }
        let grids: Vec<_> = request.tiles.iter().map(|tiles| (tiles.rows, tiles.cols)).collect();
        let mut ids = self.encode(&request.messages, &grids, true)?;
        let (prompt, most) = (ids.len(), self.config.text.max_positions);
        let room = most.saturating_sub(prompt);
        if ids.is_empty() || (room == 0 && request.max_new_tokens > 0) {
            return Err(Error::TooLong { tokens: prompt, most: most.saturating_sub(1) });
        }
        if let Some(draft) = &request.draft {
            let (whole, start) = self.encode_answered(&request.messages, &grids, draft)?;
            // Where the tokenizer merges across the seam the prompt is another one.
            if start == prompt && whole.len() <= most.min(prompt + DRAFT) {
                ids = whole;
            }
        }
        let (mut positions, next) = self.positions(&ids[..prompt], &grids)?;
        positions.extend(rope::line(next, ids.len() - prompt));
        let max_new_tokens = request.max_new_tokens.min(room);
        let pictures = self.picture_tokens(&ids[..prompt]).last().map_or(0, |&last| last as usize + 1);
        Ok(Prepared { ids, prompt, pictures, positions, next, max_new_tokens })
    }

    fn unique_tiles(&self, requests: &[Request]) -> Result<Unique> {
        let mut seen: Vec<(&Arc<Rgb>, Option<&Arc<Tiles>>)> = Vec::new();
        let mut place = HashMap::new();
        let mut index = Vec::with_capacity(requests.len());
        for request in requests {
            let one = request.images.iter().enumerate().map(|(i, image)| {
                *place.entry(Arc::as_ptr(image)).or_insert_with(|| {
                    seen.push((image, request.tiles.get(i)));
                    seen.len() - 1
                })
            });
            index.push(one.collect());
        }
        let cut = |(image, tiles): (&Arc<Rgb>, Option<&Arc<Tiles>>)| match tiles {
            Some(tiles) => Ok(Some(Arc::clone(tiles))),
            None => match self.vision()?.images.process(image) {
                Ok(tiles) => Ok(Some(Arc::new(tiles))),
                Err(Error::Picture { .. }) => Ok(None),
                Err(error) => Err(error),
            },
        };
        let tiles = seen.into_par_iter().map(cut).collect::<Result<_>>()?;
        Ok((tiles, index))
    }
}

/// All requests at hand from the start; the first error ends it all.
struct Batch {
    requests: std::vec::IntoIter<Request>,
    answers: Vec<Vec<Completion>>,
}

impl Exchange for Batch {
    fn next(&mut self, _: bool) -> Result<Next> {
        Ok(self.requests.next().map_or(Next::End, Next::Request))
    }

    fn done(&mut self, index: usize, answer: Result<Vec<Completion>>) -> Result<()> {
        self.answers[index] = answer?;
        Ok(())
    }
}
