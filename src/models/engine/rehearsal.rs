//! What passes take of a GPU's memory: the largest that limits allow are run on a device that computes nothing and counts memory.

use std::sync::Arc;

use super::decode::{Decoder, Step};
use super::entry::Prepared;
use super::prefill::{pass_logits, verify};
use super::room::Room;
use crate::error::{Error, Result};
use crate::models::linear::Linear;
use crate::models::param::Param;
use crate::models::rope::Position;
use crate::models::text::{KvCache, Text};
use crate::models::vision_side::VisionSide;
use crate::models::vlm::Vlm;
use crate::ops::attention::{PagedSpans, Span};
use crate::ops::kv_cache::{PAGE, PageType};
use crate::ops::sample::{self, Draw, Sampling};
use crate::tensor::{Gpu, Indices, Tensor};

/// A model's shapes on a dry device.
pub(super) struct Rehearsal {
    gpu: Arc<Gpu>,
    text: Text,
    vision: Option<VisionSide>,
    pages: PageType,
}

impl Rehearsal {
    /// Of a model on `gpu`.
    pub fn new(vlm: &Vlm, gpu: &Gpu) -> Result<Rehearsal> {
        let gpu = gpu.to_dry();
        let (mut text, mut vision, mut outcome) = (vlm.text.clone(), vlm.vision.clone(), Ok(()));
        let mut blank = |param: &mut Param| {
            if outcome.is_ok() {
                outcome = param.make_blank(&gpu);
            }
        };
        text.visit(&mut |_, param| blank(param));
        vision.iter_mut().for_each(|vision| vision.visit(&mut |_, param| blank(param)));
        let mut adapter = |_: &str, linear: &mut Linear| {
            linear
                .lora
                .iter_mut()
                .for_each(|lora| [&mut lora.a, &mut lora.b].into_iter().for_each(&mut blank));
        };
        text.visit_linears(&mut adapter);
        vision.iter_mut().for_each(|vision| vision.visit_linears(&mut adapter));
        outcome?;
        Ok(Rehearsal { gpu, text, vision, pages: vlm.pages })
    }

    /// Bytes that a cache of so many pages takes: in blocks of the sizes that the arena has.
    pub fn cache_bytes(&self, pages: usize) -> Result<usize> {
        let before = self.gpu.memory_use().in_use;
        let _cache = self.text.cache(pages, self.pages)?;
        Ok(self.gpu.memory_use().in_use - before)
    }

    /// Bytes beside weights and cache that the largest passes within `room` take, one kind after the other, with what is held meanwhile.
    /// Once only: what is counted is the most so far.
    pub fn passes(self, room: &Room) -> Result<usize> {
        let mut cache = self.text.cache(1, self.pages)?;
        let before = self.gpu.memory_use().in_use;
        let embed = self.text.embed(&Indices::from(vec![0]))?;
        let _features = match &self.vision {
            Some(_) => Some(embed.like(&[room.features(), embed.cols()])?),
            None => None,
        };
        let mut decoder = Decoder::default();
        for _ in 0..2 {
            self.see(room)?;
            self.prefill(room, &mut cache)?;
            // The second step is kept as a graph.
            for _ in 0..2 {
                self.decode(room, &mut decoder, &mut cache)?;
            }
        }
        Ok(self.gpu.memory_use().most_reserved - before)
    }

    fn see(&self, room: &Room) -> Result<()> {
        let Some(vision) = &self.vision else { return Ok(()) };
        let picture = vision.blank(room.limits.pass_patches)?;
        vision.features(&[&picture], usize::MAX).map(drop)
    }

    fn prefill(&self, room: &Room, cache: &mut KvCache) -> Result<()> {
        let (tokens, rows) = (room.tokens(), room.logit_rows());
        // A prompt with pictures that takes several passes is embedded before the first.
        let kept = match &self.vision {
            Some(_) if room.longest > room.limits.pass_tokens => Some(self.embed(room.longest)?),
            _ => None,
        };
        let keys = room.keys();
        let span = Span { q_start: 0, q_len: tokens, k_start: 0, k_len: keys };
        let spans = PagedSpans::new(vec![span], vec![0; keys.div_ceil(PAGE)]);
        let (positions, to): (Vec<Position>, Indices) = (vec![[0; 3]; tokens], vec![0; tokens].into());
        let x = self.text.forward_cached(self.embed(tokens)?, &positions, &to, &spans, cache)?;
        let logits = pass_logits(&self.text, &x, vec![0; rows])?;
        let draft = Prepared {
            ids: vec![0; rows],
            prompt: 1,
            pictures: 0,
            positions: Vec::new(),
            next: 0,
            max_new_tokens: 0,
        };
        verify(&logits, &[(&draft, 0)])?;
        drop(kept);
        draw(&logits, room.limits.completions)
    }

    fn embed(&self, tokens: usize) -> Result<Tensor> {
        self.text.embed(&Indices::from(vec![0; tokens]))
    }

    fn decode(&self, room: &Room, decoder: &mut Decoder, cache: &mut KvCache) -> Result<()> {
        let (n, table) = (room.limits.completions, vec![0; room.longest.div_ceil(PAGE)]);
        let sequences = vec![(&table[..], room.longest); n];
        let step = Step { ids: vec![0; n], positions: vec![[0; 3]; n], sequences };
        draw(&decoder.step(&self.text, step, cache)?, n)
    }
}

/// `n` tokens, in the way that takes the most memory.
fn draw(logits: &Tensor, n: usize) -> Result<()> {
    let sampling = Sampling { temperature: 1.0, top_p: 0.5 };
    let draws = vec![Draw { sampling, uniform: 0.5 }; n];
    let drawn = sample::draw_rows(logits, &vec![0; n].into(), &draws)?;
    if drawn.len() == n { Ok(()) } else { Err(Error::Failure("a rehearsal without tokens".into())) }
}
