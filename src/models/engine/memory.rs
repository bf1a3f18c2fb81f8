//! The cache of keys and values: how large it may be, and who has which of its pages. A request is let in only with pages for all that it may
//! take, so that none runs out half-way.

use super::Limits;
use super::decode::{Decoder, Step};
use super::entry::Prepared;
use super::pool::Pool;
use super::room::Room;
use crate::error::{Error, Result};
use crate::models::text::{KvCache, Text};
use crate::models::vlm::Vlm;
use crate::ops::kv_cache::PAGE;
use crate::tensor::Tensor;

pub(super) struct Memory {
    cache: Option<KvCache>,
    /// Its launches have the addresses of this cache, and go with it.
    decoder: Decoder,
    pool: Pool,
    /// Pages that were wanted when it was made; the device may have had room for fewer.
    wanted: usize,
    pub room: Room,
}

/// Pages that a request takes.
pub(super) struct Needs {
    /// For each of its completions, with the prompt.
    each: usize,
    /// The first of these, that all of them share: those full of the prompt.
    common: usize,
    samples: usize,
    /// Tokens of each completion, with the prompt.
    rows: usize,
}

impl Needs {
    pub fn new(prompt: &Prepared, samples: usize) -> Needs {
        let rows = prompt.rows();
        Needs { each: rows.div_ceil(PAGE), common: prompt.prompt / PAGE, samples, rows }
    }

    fn total(&self) -> usize {
        self.each + (self.samples - 1) * (self.each - self.common)
    }
}

impl Memory {
    pub fn new(vlm: &Vlm, limits: Limits) -> Result<Memory> {
        let (room, decoder) = (Room::new(vlm, limits)?, Decoder::default());
        Ok(Memory { cache: None, decoder, pool: Pool::default(), wanted: 0, room })
    }

    /// Makes room for steps of so many completions; false if there is none. Nobody has pages, and the cache will be made anew.
    pub fn serve(&mut self, vlm: &Vlm, completions: usize) -> Result<bool> {
        self.drop_cache(0);
        let room = self.room.with_completions(vlm, completions)?;
        let serves = room.limits.completions >= completions;
        if serves {
            self.room = room;
        }
        Ok(serves)
    }

    pub fn get(&mut self) -> Result<&mut KvCache> {
        self.cache.as_mut().ok_or_else(without)
    }

    /// See `Decoder::step`.
    pub fn step(&mut self, text: &Text, step: Step) -> Result<Tensor> {
        self.decoder.step(text, step, self.cache.as_mut().ok_or_else(without)?)
    }

    /// Gives up what is kept for the next step.
    pub fn forget_step(&mut self) {
        self.decoder = Decoder::default();
    }

    fn drop_cache(&mut self, wanted: usize) {
        self.forget_step();
        (self.cache, self.pool, self.wanted) = (None, Pool::default(), wanted);
    }

    /// Whether a request has room alone.
    pub fn holds(&self, needs: &Needs) -> bool {
        needs.total() <= self.room.pages && needs.rows <= self.room.longest
    }

    /// The pages of each completion, of which all begin with `shared`, someone else's; `None` if others have to give back theirs first, an error if that would
    /// not help. `idle`: nobody has any, so that the cache can be made anew, for this request and `others` like it. One that was made for far less
    /// is not filled any further, so that it comes to that.
    pub fn take(
        &mut self,
        vlm: &Vlm,
        needs: &Needs,
        shared: &[u32],
        others: usize,
        idle: bool,
    ) -> Result<Option<Vec<Vec<u32>>>> {
        let (total, most) = (needs.total(), self.room.pages);
        if !self.holds(needs) {
            return Err(Error::OutOfMemory { wanted: total * self.room.page_bytes, in_use: 0 });
        }
        let wanted = total.saturating_mul(1 + others).min(most);
        if self.pool.pages() < total || 2 * self.wanted < wanted {
            if !idle {
                return Ok(None);
            }
            self.grow(vlm, total, wanted)?;
        }
        let Some(mut new) = self.pool.take(total - shared.len()) else { return Ok(None) };
        self.pool.share(shared);
        let mut tables = vec![shared.to_vec()];
        tables[0].extend(new.drain(..needs.each - shared.len()));
        while tables.len() < needs.samples {
            let mut table = tables[0][..needs.common].to_vec();
            self.pool.share(&table);
            table.extend(new.drain(..needs.each - needs.common));
            tables.push(table);
        }
        Ok(Some(tables))
    }

    /// A new cache with `wanted` pages, or fewer, down to `least`, where the device has no room for them.
    fn grow(&mut self, vlm: &Vlm, least: usize, wanted: usize) -> Result<()> {
        self.drop_cache(wanted);
        let mut pages = wanted;
        loop {
            match vlm.text.cache(pages, vlm.pages) {
                Ok(cache) => {
                    self.cache = Some(cache);
                    self.pool = Pool::new(pages);
                    return Ok(());
                }
                Err(Error::OutOfMemory { .. }) if pages > least => pages = (pages / 2).max(least),
                Err(error) => return Err(error),
            }
        }
    }

    /// Someone has these pages too.
    pub fn share(&mut self, table: &[u32]) {
        self.pool.share(table);
    }

    pub fn give_back(&mut self, tables: &[Vec<u32>]) {
        tables.iter().for_each(|table| self.pool.give_back(table));
    }
}

fn without() -> Error {
    Error::Failure("keys and values without a cache".into())
}
