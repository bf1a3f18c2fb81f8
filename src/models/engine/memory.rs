//! The cache of keys and values: how large it may be, and who has which rows. A request is let in only with rows for all that it may take, so that
//! none runs out half-way.

use std::ops::Range;

use super::rows::Rows;
use crate::error::{Error, Result};
use crate::models::text::KvCache;
use crate::models::vlm::Vlm;

/// Main memory for keys and values.
const CACHE_BYTES: usize = 2 << 30;

pub(super) struct Memory {
    cache: Option<KvCache>,
    rows: Rows,
    total: usize,
    /// Rows that were wanted when it was made; the device may have had room for fewer.
    wanted: usize,
    /// The most that it may have.
    most: usize,
    /// Of all layers' keys and values.
    row_bytes: usize,
}

impl Memory {
    pub fn new(vlm: &Vlm, bytes: Option<usize>) -> Result<Memory> {
        let t = &vlm.config.text;
        let (element, room) = match vlm.text.gpu() {
            None => (size_of::<f32>(), CACHE_BYTES),
            // The other half is for activations.
            Some(gpu) => (vlm.text.dtype().size(), gpu.free_memory()? / 2),
        };
        let room = bytes.unwrap_or(room);
        let row_bytes = t.layers * 2 * t.kv_heads * t.head_size * element;
        let most = room / row_bytes.max(1);
        Ok(Memory { cache: None, rows: Rows::default(), total: 0, wanted: 0, most, row_bytes })
    }

    pub fn get(&mut self) -> Result<&mut KvCache> {
        self.cache.as_mut().ok_or_else(|| Error::Failure("keys and values without a cache".into()))
    }

    /// So many rows; `None` if others have to be given back first, an error if that would not help. `idle`: nobody has any, so that the cache can be
    /// made anew, for this one and `others` like it. One that was made for
    /// far less is not filled any further, so that it comes to that.
    pub fn take(&mut self, vlm: &Vlm, len: usize, others: usize, idle: bool) -> Result<Option<Range<usize>>> {
        if len > self.most {
            return Err(Error::OutOfMemory { wanted: len * self.row_bytes, in_use: 0 });
        }
        let wanted = len.saturating_mul(1 + others).min(self.most);
        if self.total < len || 2 * self.wanted < wanted {
            if !idle {
                return Ok(None);
            }
            self.grow(vlm, len, wanted)?;
        }
        Ok(self.rows.take(len).map(|start| start..start + len))
    }

    /// A new cache with `wanted` rows, or fewer, down to `least`, where the device has no room for them.
    fn grow(&mut self, vlm: &Vlm, least: usize, wanted: usize) -> Result<()> {
        self.cache = None;
        (self.rows, self.total, self.wanted) = (Rows::default(), 0, wanted);
        let mut total = wanted;
        loop {
            match vlm.text.cache(total) {
                Ok(cache) => {
                    self.cache = Some(cache);
                    (self.rows, self.total) = (Rows::new(total), total);
                    return Ok(());
                }
                Err(Error::OutOfMemory { .. }) if total > least => total = (total / 2).max(least),
                Err(error) => return Err(error),
            }
        }
    }

    pub fn give_back(&mut self, rows: Range<usize>) {
        self.rows.give_back(rows);
    }
}
