//! What a request can go on from: the pages of one that is under way, or of one that is answered and whose pictures someone still holds.

use std::sync::{Arc, Weak};

use super::Engine;
use super::entry::{Entry, Prepared};
use super::memory::Memory;
use crate::error::{Error, Result};
use crate::models::generate::Request;
use crate::models::image::Tiles;
use crate::ops::kv_cache::PAGE;

/// The prompt of a request that is answered, and its pages. They are given up where others need them.
pub(super) struct Prefix {
    index: usize,
    tiles: Vec<Weak<Tiles>>,
    ids: Vec<u32>,
    table: Vec<u32>,
}

/// What a new request has in common with another.
#[derive(Default)]
pub(super) struct Related {
    /// The index of that one, and how many tokens.
    pub from: Option<(usize, usize)>,
    /// Its pages that are full of these.
    pub pages: Vec<u32>,
}

impl Engine<'_> {
    /// The request that a new one has the most in common with.
    pub(super) fn related(&self, request: &Request, prompt: &Prepared) -> Related {
        let kept = self.kept.iter().map(|p| {
            let same = same(&p.tiles, &request.tiles, is);
            (same, p.index, &p.ids[..], &p.table)
        });
        let under_way = self.entries.iter().map(|e| {
            let same = same(&e.request.tiles, &request.tiles, Arc::ptr_eq);
            (same, e.index, e.prompt.prompt_ids(), &e.tables[0])
        });
        let mut best = (0, Related::default());
        for (_, index, ids, table) in under_way.chain(kept).filter(|(same, ..)| *same) {
            let tokens = prompt.shared(ids);
            // Of equals the first.
            if tokens > best.0 {
                let pages = table[..tokens / PAGE].to_vec();
                best = (tokens, Related { from: Some((index, tokens)), pages });
            }
        }
        best.1
    }

    /// Lets the entries that begin like another go on from where that one has come to: full pages are theirs as well, the rest they get as a copy.
    pub(super) fn inherit(&mut self) -> Result<()> {
        for i in 0..self.entries.len() {
            let Some((index, tokens)) = self.entries[i].from else { continue };
            let kept = self.kept.iter().find(|p| p.index == index).map(|p| (&p.table, p.ids.len()));
            let owner = self.entries.iter().find(|e| e.index == index);
            // One that is gone before it could give anything: all is computed.
            let Some((table, done)) = kept.or(owner.map(|e| (&e.tables[0], e.done))) else {
                self.entries[i].from = None;
                continue;
            };
            if done >= tokens {
                self.cache.get()?.copy(table, &self.entries[i].tables[0], tokens / PAGE * PAGE..tokens)?;
                self.entries[i].from = None;
                self.entries[i].done = tokens;
                self.spent.shared_tokens += tokens;
            }
        }
        Ok(())
    }

    /// Gives back the pages of an entry that is answered; those of a prompt with pictures may be wanted again, of the last one about them.
    pub(super) fn release(&mut self, entry: &mut Entry) {
        let tiles = &entry.request.tiles;
        if !tiles.is_empty() {
            let ids = entry.prompt.prompt_ids().to_vec();
            let table = entry.tables[0][..ids.len().div_ceil(PAGE)].to_vec();
            self.cache.share(&table);
            let cache = &mut self.cache;
            self.kept.retain(|p| keep(cache, p, !same(&p.tiles, tiles, is)));
            let tiles = tiles.iter().map(Arc::downgrade).collect();
            self.kept.push_back(Prefix { index: entry.index, tiles, ids, table });
        }
        self.cache.give_back(&entry.tables);
    }

    /// Forgets pictures that no request has any more: they will not come again.
    pub(super) fn forget(&mut self) {
        self.features.retain(|(tiles, _)| Arc::strong_count(tiles) > 1);
        let cache = &mut self.cache;
        self.kept.retain(|p| keep(cache, p, p.tiles.iter().all(|tiles| tiles.strong_count() > 0)));
    }

    /// Whether there is room for the features of a new request's pictures beside those that others wait for. What nobody waits for makes way, the
    /// oldest first; a single request has room.
    pub(super) fn has_room(&mut self, request: &Request) -> Result<bool> {
        let Some(vision) = &self.vlm.vision else { return Ok(true) };
        let (mut wanted, mut rows): (Vec<&Arc<Tiles>>, usize) = (Vec::new(), 0);
        let waiting = self.entries.iter().filter(|e| e.wants_pictures()).flat_map(|e| &e.request.tiles);
        for tiles in waiting.chain(&request.tiles) {
            if vision.patches(tiles)? > self.limits.pass_patches {
                let wanted = self.cache.room.passes;
                return Err(Error::OutOfMemory { wanted, in_use: 0 });
            }
            if !wanted.iter().any(|other| Arc::ptr_eq(other, tiles)) {
                wanted.push(tiles);
                rows += vision.rows(tiles)?;
            }
        }
        let most = self.cache.room.features();
        let mut spare = most.saturating_sub(rows);
        for i in (0..self.features.len()).rev() {
            let (tiles, features) = &self.features[i];
            if wanted.iter().any(|other| Arc::ptr_eq(other, tiles)) {
                continue;
            }
            match spare.checked_sub(features.rows()) {
                Some(left) => spare = left,
                None => drop(self.features.remove(i)),
            }
        }
        Ok(rows <= most || self.entries.is_empty())
    }

    /// Gives up the oldest of what is kept for requests to come. False if there is none.
    pub(super) fn give_up_one(&mut self) -> bool {
        let oldest = self.kept.pop_front();
        oldest.is_some_and(|prefix| !keep(&mut self.cache, &prefix, false))
    }
}

/// `held`; if not, the pages are given back.
fn keep(cache: &mut Memory, prefix: &Prefix, held: bool) -> bool {
    if !held {
        cache.give_back(std::slice::from_ref(&prefix.table));
    }
    held
}

fn is(ours: &Weak<Tiles>, theirs: &Arc<Tiles>) -> bool {
    ours.as_ptr() == Arc::as_ptr(theirs)
}

fn same<A, B>(ours: &[A], theirs: &[B], is_same: impl Fn(&A, &B) -> bool) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| is_same(a, b))
}
