//! Answers requests as they come, many at a time: a completion that is done makes room for the next request at once (continuous batching). What a
//! request yields does not depend on what else is under way.
//!
//! ```text
//! Exchange::next -> admit: cache pages for all it may take -> prefill.rs: a pass over prompts -> decode.rs: steps -> Exchange::done
//! ```
//!
//! `entry.rs` is a request under way, `prefix.rs` what it may go on from, `memory.rs` the cache, and `pool.rs` who has which of its pages. How
//! large passes and the cache may be says `room.rs`, for which `rehearsal.rs` counts what the largest passes take.

mod awake;
mod decode;
mod entry;
mod memory;
mod pool;
mod prefill;
mod prefix;
mod rehearsal;
mod room;
mod spent;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::decode::Step;
use self::entry::Entry;
pub(super) use self::entry::Prepared;
use self::memory::{Memory, Needs};
use self::prefix::{Prefix, Related};
pub use self::room::{DRAFT, Room};
pub use self::spent::Spent;
use crate::error::{Error, Result};
use crate::models::generate::{Completion, Request};
use crate::models::image::Tiles;
use crate::models::vision_side::PATCHES_PER_PASS;
use crate::models::vlm::Vlm;
use crate::ops::sample::{self, Draw};
use crate::random;
use crate::tensor::{Indices, Mark, Tensor};

/// Where requests come from and answers go.
pub trait Exchange {
    /// `wait`: nothing is under way, so there is time for one to come.
    fn next(&mut self, wait: bool) -> Result<Next>;

    /// The answer to the `index`-th request, in whatever order: its completions, or why it has none. An error ends it all.
    fn done(&mut self, index: usize, answer: Result<Vec<Completion>>) -> Result<()>;
}

pub enum Next {
    Request(Request),
    /// None at hand.
    Later,
    /// None any more.
    End,
}

/// How much at a time. Nothing of it changes an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Completions under way; a single request may want more.
    pub completions: usize,
    /// Tokens of prompts in a pass: bounds the memory of its activations. A longer prompt takes several passes, with decode steps of others between.
    pub pass_tokens: usize,
    /// Patches of pictures in a pass through the vision tower; a single picture may have more.
    pub pass_patches: usize,
    /// Of the cache of keys and values, which has a page more; none: 2 GiB of main memory, or what the largest passes leave of a GPU's.
    pub cache_bytes: Option<usize>,
}

impl Limits {
    pub fn completions(completions: usize) -> Limits {
        Limits { completions, pass_tokens: 8 * 1024, pass_patches: PATCHES_PER_PASS, cache_bytes: None }
    }

    fn at_least_one(self) -> Limits {
        let (completions, pass_tokens) = (self.completions.max(1), self.pass_tokens.max(1));
        Limits { completions, pass_tokens, ..self }
    }
}

/// The cache pages of a request's completions, and whom it goes on from, for how many tokens.
type Place = (Vec<Vec<u32>>, Option<(usize, usize)>);

/// Taken from the exchange, and not yet let in.
struct Waiting {
    index: usize,
    request: Request,
    /// From when it was first looked at.
    prompt: Option<Prepared>,
}

pub(super) struct Engine<'a> {
    vlm: &'a Vlm,
    cache: Memory,
    /// Under way, in the order in which they were let in.
    entries: Vec<Entry>,
    waiting: VecDeque<Waiting>,
    limits: Limits,
    /// Requests taken from the exchange.
    taken: usize,
    ended: bool,
    features: Vec<(Arc<Tiles>, Arc<Tensor>)>,
    /// Prompts that are answered, the oldest first.
    kept: VecDeque<Prefix>,
    spent: Spent,
}

impl Vlm {
    /// How large passes and cache would be in `answer`, and what they take of a GPU.
    pub fn room(&self, limits: Limits) -> Result<Room> {
        Room::new(self, limits.at_least_one())
    }

    /// Answers what comes.
    pub fn answer(&self, limits: Limits, exchange: &mut dyn Exchange) -> Result<Spent> {
        let cache = Memory::new(self, limits.at_least_one())?;
        let mut engine = Engine {
            vlm: self,
            limits: cache.room.limits,
            cache,
            entries: Vec::new(),
            waiting: VecDeque::new(),
            taken: 0,
            ended: false,
            features: Vec::new(),
            kept: VecDeque::new(),
            spent: Spent::default(),
        };
        while engine.turn(exchange)? {}
        Ok(engine.spent)
    }
}

impl Engine<'_> {
    /// Lets requests in and takes all that are under way one step further. False when nothing is left to do.
    fn turn(&mut self, exchange: &mut dyn Exchange) -> Result<bool> {
        self.fetch(exchange)?;
        self.admit(exchange)?;
        let outcome = match self.vlm.text.gpu() {
            Some(_) => self.advance(),
            // On a thread of the pool: a loop that begins elsewhere waits for two threads to wake, and a token has hundreds of them.
            None => awake::run(|| self.advance()),
        };
        match outcome {
            Ok(()) => self.deliver(exchange)?,
            Err(Error::OutOfMemory { wanted, in_use }) => {
                self.retreat(exchange, Error::OutOfMemory { wanted, in_use })?;
            }
            Err(error) => return Err(error),
        }
        Ok(!(self.ended && self.entries.is_empty() && self.waiting.is_empty()))
    }

    /// Takes requests from the exchange while there is room for their completions.
    fn fetch(&mut self, exchange: &mut dyn Exchange) -> Result<()> {
        let samples = |request: &Request| request.samples;
        let mut under_way: usize = self.entries.iter().map(|e| samples(&e.request)).sum();
        under_way += self.waiting.iter().map(|w| samples(&w.request)).sum::<usize>();
        // A pass over prompts reads all weights, and decoding waits for it: worth while for several.
        if !self.entries.is_empty()
            && under_way + self.limits.completions.div_ceil(4) > self.limits.completions
        {
            return Ok(());
        }
        while !self.ended && under_way < self.limits.completions {
            match exchange.next(under_way == 0)? {
                Next::Request(request) => {
                    under_way += samples(&request);
                    self.waiting.push_back(Waiting { index: self.taken, request, prompt: None });
                    self.taken += 1;
                }
                Next::Later => break,
                Next::End => self.ended = true,
            }
        }
        Ok(())
    }

    /// Lets waiting requests in, in their order, as far as the cache has room for all that they may take.
    fn admit(&mut self, exchange: &mut dyn Exchange) -> Result<()> {
        self.forget();
        let mut under_way: usize = self.entries.iter().map(|e| e.request.samples).sum();
        while let Some(Waiting { index, mut request, prompt }) = self.waiting.pop_front() {
            if !self.entries.is_empty() && under_way + request.samples > self.limits.completions {
                self.waiting.push_front(Waiting { index, request, prompt });
                break;
            }
            let mut prompt = match prompt.map_or_else(|| self.vlm.prepared(&mut request), Ok) {
                Ok(prompt) => prompt,
                Err(error) => {
                    exchange.done(index, Err(error))?;
                    continue;
                }
            };
            if !self.cache.holds(&Needs::new(&prompt, request.samples)) {
                prompt.forget_draft();
            }
            match self.place(&request, &prompt) {
                Ok(Some((tables, from))) => {
                    under_way += request.samples;
                    self.entries.push(Entry::new(index, request, prompt, tables, from));
                    self.inherit()?;
                }
                Ok(None) => {
                    self.waiting.push_front(Waiting { index, request, prompt: Some(prompt) });
                    break;
                }
                Err(error) => exchange.done(index, Err(error))?,
            }
        }
        Ok(())
    }

    /// Pages for a request, and whom it goes on from; `None` if others have to be answered first.
    fn place(&mut self, request: &Request, prompt: &Prepared) -> Result<Option<Place>> {
        let others = if self.ended {
            self.waiting.len()
        } else {
            self.limits.completions.saturating_sub(1) / request.samples
        };
        // As many prompts again may be kept.
        let others = if request.tiles.is_empty() { others } else { 2 * others + 1 };
        let needs = Needs::new(prompt, request.samples);
        if !self.has_room(request)? || !self.serves(request.samples)? {
            return Ok(None);
        }
        loop {
            let Related { from, pages } = self.related(request, prompt);
            let idle = self.entries.is_empty() && self.kept.is_empty();
            match self.cache.take(self.vlm, &needs, &pages, others, idle)? {
                Some(tables) => return Ok(Some((tables, from))),
                None if self.give_up_one() => {}
                None => return Ok(None),
            }
        }
    }

    fn advance(&mut self) -> Result<()> {
        let began = Instant::now();
        let marks = self.see()?;
        let seen = began.elapsed();
        let prefilled = self.prefill()?;
        let vision = match (marks, self.vlm.text.gpu()) {
            // There the pictures were only queued: nobody waits between them and the prompts.
            (Some((from, to)), Some(gpu)) => {
                Duration::from_secs_f32(gpu.milliseconds(&from, &to)?.max(0.0) / 1e3)
            }
            _ => seen,
        };
        self.spent.vision += vision;
        if prefilled {
            self.spent.prefill += began.elapsed().saturating_sub(vision);
        }
        let began = Instant::now();
        if self.decode()? {
            self.spent.decode += began.elapsed();
        }
        Ok(())
    }

    /// Features of the pictures of new entries; those of a picture that several have are computed once. On a GPU, marks before and behind.
    fn see(&mut self) -> Result<Option<(Mark, Mark)>> {
        let mut marks = None;
        let known = |features: &[(Arc<Tiles>, Arc<Tensor>)], tiles: &Arc<Tiles>| {
            features.iter().find(|(known, _)| Arc::ptr_eq(known, tiles)).map(|(_, f)| Arc::clone(f))
        };
        let mut new: Vec<Arc<Tiles>> = Vec::new();
        // One that goes on from another has its pictures from there.
        let is_new = |e: &&Entry| e.done == 0 && e.from.is_none();
        for tiles in self.entries.iter().filter(is_new).flat_map(|e| &e.request.tiles) {
            if known(&self.features, tiles).is_none() && !new.iter().any(|n| Arc::ptr_eq(n, tiles)) {
                new.push(Arc::clone(tiles));
            }
        }
        if !new.is_empty() {
            let pictures: Vec<&Tiles> = new.iter().map(AsRef::as_ref).collect();
            let mark = || self.vlm.text.gpu().map(|gpu| gpu.mark()).transpose();
            let from = mark()?;
            let features = self.vlm.vision()?.features(&pictures, self.limits.pass_patches)?;
            marks = from.zip(mark()?);
            self.spent.pictures += new.len();
            self.features.extend(new.into_iter().zip(features.into_iter().map(Arc::new)));
        }
        for entry in self.entries.iter_mut().filter(|e| is_new(&&**e) && e.features.is_empty()) {
            entry.features = entry.request.tiles.iter().filter_map(|t| known(&self.features, t)).collect();
        }
        Ok(marks)
    }

    /// One token more for each completion under way. Returns whether there was one.
    fn decode(&mut self) -> Result<bool> {
        let (mut step, mut drafts) = (Step::default(), Vec::new());
        for (e, entry) in self.entries.iter_mut().enumerate() {
            for c in 0..entry.completions.len() {
                if entry.is_complete(c) {
                    continue;
                }
                let draft = &mut entry.completions[c];
                drafts.push((e, c));
                step.ids.push(draft.ids.last().copied().unwrap_or_default());
                step.positions.push([draft.next; 3]);
                draft.next += 1;
                draft.len += 1;
                step.sequences.push((&entry.tables[c], draft.len));
            }
        }
        if drafts.is_empty() {
            return Ok(false);
        }
        let logits = self.cache.step(&self.vlm.text, step)?;
        self.spent.steps += 1;
        self.spent.new_tokens += drafts.len();
        self.extend(&drafts, &logits, &(0..drafts.len() as u32).collect())?;
        Ok(true)
    }

    /// Chooses the next token of each of these completions (entry, completion), the i-th from row `rows[i]` of the logits.
    fn extend(&mut self, drafts: &[(usize, usize)], logits: &Tensor, rows: &Indices) -> Result<()> {
        let draw = |&(e, c): &(usize, usize)| {
            let entry = &mut self.entries[e];
            let uniform = random::uniform(&mut entry.completions[c].rng);
            Draw { sampling: entry.request.sampling, uniform }
        };
        let draws: Vec<Draw> = drafts.iter().map(draw).collect();
        let tokens = sample::draw_rows(logits, rows, &draws)?;
        for (&(e, c), token) in drafts.iter().zip(tokens) {
            let draft = &mut self.entries[e].completions[c];
            draft.ended = self.vlm.config.eos_token_ids.contains(&token);
            if !draft.ended {
                draft.ids.push(token);
            }
        }
        Ok(())
    }

    /// Answers that are whole go out, and their pages are free again.
    fn deliver(&mut self, exchange: &mut dyn Exchange) -> Result<()> {
        let mut i = 0;
        while i < self.entries.len() {
            if !self.entries[i].is_finished() {
                i += 1;
                continue;
            }
            let mut entry = self.entries.remove(i);
            self.release(&mut entry);
            let mut completions = Vec::with_capacity(entry.completions.len());
            for draft in entry.completions {
                let text = self.vlm.prompter.decode(&draft.ids, false)?;
                let (ids, ended, draft_logprob) = (draft.ids, draft.ended, entry.logprob);
                completions.push(Completion { ids, text, ended, draft_logprob });
            }
            exchange.done(entry.index, Ok(completions))?;
        }
        Ok(())
    }

    /// The device's memory did not do: all that is under way begins again, half as many at a time; a single one is given up.
    fn retreat(&mut self, exchange: &mut dyn Exchange, error: Error) -> Result<()> {
        self.spent.restarts += 1;
        let entries = std::mem::take(&mut self.entries);
        self.cache.forget_step();
        self.features.clear();
        while self.give_up_one() {}
        for entry in &entries {
            self.cache.give_back(&entry.tables);
        }
        if let [only] = &entries[..] {
            return exchange.done(only.index, Err(error));
        }
        let under_way: usize = entries.iter().map(|e| e.request.samples).sum();
        self.limits.completions = (under_way / 2).max(1);
        for entry in entries.into_iter().rev() {
            let Entry { index, request, prompt, .. } = entry;
            self.waiting.push_front(Waiting { index, request, prompt: Some(prompt) });
        }
        Ok(())
    }
}
