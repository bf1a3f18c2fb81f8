//! What there is room for on a device: how large passes get, and what is left for keys and values. Passes come first: their largest are foretold
//! (rehearsal.rs), so that none runs out of memory half-way.

use super::rehearsal::Rehearsal;
use super::{Engine, Limits};
use crate::error::{Error, Result};
use crate::models::vlm::Vlm;
use crate::ops::kv_cache::PAGE;
use crate::tensor::{Gpu, main_memory};

/// Tokens of a draft and the end behind it, at most: a row of logits each, and they go through the model together.
pub const DRAFT: usize = 511;
/// Main memory for keys and values, if half of what is available is not less.
const CACHE_BYTES: usize = 2 << 30;
/// One part in so many of what passes take is left free beside it: blocks are taken that are larger than what is asked for.
const MARGIN: usize = 8;
/// Below these passes do not get smaller for there to be room for longer requests.
const LEAST_TOKENS: usize = DRAFT + 1;
const LEAST_COMPLETIONS: usize = 4;
/// And below this nothing gets.
const LEAST: usize = 256;

/// What an engine takes of its device, at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// As asked for, or less where there is no room for that.
    pub limits: Limits,
    /// Tokens of a prompt and what is written behind it. What is longer is refused.
    pub longest: usize,
    /// Bytes of a GPU's memory that the largest passes take beside the weights, with features of pictures; 0 in main memory, where it is not known.
    pub passes: usize,
    /// Pages of the cache of keys and values, and the bytes of one.
    pub pages: usize,
    pub page_bytes: usize,
}

impl Room {
    /// For `limits`, as far as the device of the model has room now.
    pub fn new(vlm: &Vlm, limits: Limits) -> Result<Room> {
        let page_bytes = (PAGE * vlm.text.cache_bytes(vlm.pages)).max(1);
        let longest = vlm.config.text.max_positions;
        let mut room = Room { limits, longest, passes: 0, pages: 0, page_bytes };
        room.limits.pass_patches = limits.pass_patches.max(largest_picture(vlm));
        let Some(gpu) = vlm.text.gpu() else {
            let available = main_memory().and_then(|(_, bytes)| usize::try_from(bytes).ok());
            let most = available.map_or(CACHE_BYTES, |bytes| CACHE_BYTES.min(bytes / 2));
            room.pages = limits.cache_bytes.unwrap_or(most) / page_bytes;
            return Ok(room);
        };
        room.longest = longest.min(room.asked().saturating_mul(PAGE)).max(1);
        room.fit(vlm, gpu)?;
        Ok(room)
    }

    /// The same for steps of so many completions, as far as there is room for that.
    pub(super) fn with_completions(self, vlm: &Vlm, completions: usize) -> Result<Room> {
        let mut room = Room { limits: Limits { completions, ..self.limits }, ..self };
        vlm.text.gpu().map_or(Ok(()), |gpu| room.fit(vlm, gpu))?;
        Ok(room)
    }

    /// Pages that the cache may have where there is room for more.
    fn asked(&self) -> usize {
        self.limits.cache_bytes.map_or(usize::MAX, |bytes| bytes / self.page_bytes)
    }

    /// Makes passes smaller until the largest leave pages for the longest request.
    fn fit(&mut self, vlm: &Vlm, gpu: &Gpu) -> Result<()> {
        let free = gpu.free_memory()?;
        loop {
            self.passes = Rehearsal::new(vlm, gpu)?.passes(self)?;
            let left = free.saturating_sub(self.kept_free());
            self.pages = self.asked().min(pages(&Rehearsal::new(vlm, gpu)?, left, self.page_bytes)?);
            if self.pages >= self.longest.div_ceil(PAGE) {
                return Ok(());
            }
            if !self.shrink(largest_picture(vlm)) {
                self.longest = self.pages * PAGE;
                return Ok(());
            }
        }
    }

    /// What costs time first, then what keeps requests out. False if nothing gets any smaller. `picture`: patches of the largest.
    fn shrink(&mut self, picture: usize) -> bool {
        let halve = |n: &mut usize, least: usize| {
            let before = std::mem::replace(n, (*n / 2).max(least).min(*n));
            *n < before
        };
        let Limits { completions, pass_tokens, pass_patches, .. } = &mut self.limits;
        // Of each pair both.
        halve(pass_tokens, LEAST_TOKENS) | halve(pass_patches, picture.max(LEAST))
            || halve(completions, LEAST_COMPLETIONS)
            || halve(&mut self.longest, LEAST) | halve(pass_patches, LEAST)
            || halve(completions, 1)
    }

    /// Bytes that the cache leaves to passes: what is foretold, and a margin.
    pub fn kept_free(&self) -> usize {
        self.passes + self.passes / MARGIN
    }

    /// Tokens of the largest pass over prompts. A piece of a prompt may be one longer than the others (`piece_end`), and a draft goes with three of
    /// its prompt's.
    pub(super) fn tokens(&self) -> usize {
        let piece = self.limits.pass_tokens.saturating_add(1).max(DRAFT + 3);
        piece.min(self.limits.completions.saturating_mul(self.longest))
    }

    /// Keys that these tokens see, whole pages of them: a GPU gathers them.
    pub(super) fn keys(&self) -> usize {
        let all = self.limits.completions.saturating_mul(self.longest.next_multiple_of(PAGE));
        (4 * self.tokens()).max(self.longest).min(all).next_multiple_of(PAGE)
    }

    /// Rows of logits that are made at a time of a pass over prompts.
    pub(super) fn logit_rows(&self) -> usize {
        (DRAFT + 1).min(self.tokens())
    }

    /// Rows of picture features that are kept, for passes to come or for other requests.
    pub(super) fn features(&self) -> usize {
        self.longest.max(self.limits.pass_tokens.saturating_mul(2))
    }
}

impl Engine<'_> {
    /// Whether there is room for steps of so many completions, which a single request may want more of than there are to be otherwise; false if
    /// others have to be answered first.
    pub(super) fn serves(&mut self, samples: usize) -> Result<bool> {
        if self.vlm.text.gpu().is_none() || samples <= self.cache.room.limits.completions {
            return Ok(true);
        }
        while self.give_up_one() {}
        if !self.entries.is_empty() {
            return Ok(false);
        }
        if !self.cache.serve(self.vlm, samples)? {
            return Err(Error::OutOfMemory { wanted: self.cache.room.passes, in_use: 0 });
        }
        self.limits = Limits { completions: self.limits.completions, ..self.cache.room.limits };
        Ok(true)
    }
}

fn largest_picture(vlm: &Vlm) -> usize {
    vlm.vision.as_ref().map_or(0, |vision| vision.most_patches())
}

/// As many as `bytes` hold.
fn pages(model: &Rehearsal, bytes: usize, page_bytes: usize) -> Result<usize> {
    let mut pages = bytes / page_bytes;
    loop {
        let over = model.cache_bytes(pages)?.saturating_sub(bytes);
        if over == 0 || pages == 0 {
            return Ok(pages);
        }
        pages = pages.saturating_sub(over.div_ceil(page_bytes));
    }
}
