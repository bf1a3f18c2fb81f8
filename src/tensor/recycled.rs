//! Memory of activations, used again: a pass makes and drops the same large tensors layer after layer, and clearing them, or having the system map and
//! clear new pages, costs as much as some of the ops.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use memmap2::MmapMut;

/// Elements below which the allocator is quick enough.
const SMALL: usize = 16 * 1024;
/// Elements that are kept, all in all: of some layers of a small model.
const KEPT: usize = 32 << 20;

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Floats. Those of activations go back to the pool, if they are many; what came from elsewhere, weights above all, is freed.
#[derive(Clone)]
pub(super) struct Floats {
    data: Data,
    recycled: bool,
}

enum Data {
    Own(Vec<f32>),
    /// Pages that the system gave for this alone.
    Fresh(MmapMut),
}

impl Clone for Data {
    fn clone(&self) -> Data {
        Data::Own(self.to_vec())
    }
}

impl Deref for Data {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Data::Own(data) => data,
            Data::Fresh(pages) => bytemuck::cast_slice(pages),
        }
    }
}

impl Floats {
    /// So many, holding anything.
    pub fn stale(len: usize) -> Floats {
        let recycled = len >= SMALL;
        Floats { data: Data::Own(if recycled { take(len) } else { vec![0.0; len] }), recycled }
    }

    /// So many zeros, each page of which takes memory from when it is first written on. The allocator gives such pages as well, but not for what it has had
    /// back before: that it clears, and so writes, at once.
    pub fn fresh(len: usize) -> Floats {
        match MmapMut::map_anon(len * size_of::<f32>()) {
            Ok(pages) if len >= SMALL => Floats { data: Data::Fresh(pages), recycled: false },
            _ => vec![0.0; len].into(),
        }
    }
}

/// The smallest that is large enough, but not twice as large.
fn take(len: usize) -> Vec<f32> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let fits =
        |(i, kept): (usize, &Vec<f32>)| (len..2 * len).contains(&kept.len()).then_some((kept.len(), i));
    match pool.iter().enumerate().filter_map(fits).min() {
        Some((_, i)) => {
            let mut taken = pool.swap_remove(i);
            taken.truncate(len);
            taken
        }
        None => {
            drop(pool);
            vec![0.0; len]
        }
    }
}

impl Drop for Floats {
    fn drop(&mut self) {
        let Data::Own(data) = &mut self.data else { return };
        if !self.recycled || data.len() > KEPT {
            return;
        }
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.push(std::mem::take(data));
        // The oldest go: their sizes are no longer asked for.
        let mut total: usize = pool.iter().map(Vec::len).sum();
        let surplus = pool.iter().take_while(|kept| {
            let too_many = total > KEPT;
            total -= kept.len();
            too_many
        });
        let surplus = surplus.count();
        let freed: Vec<Vec<f32>> = pool.drain(..surplus).collect();
        drop(pool);
        drop(freed);
    }
}

impl From<Vec<f32>> for Floats {
    fn from(data: Vec<f32>) -> Floats {
        Floats { data: Data::Own(data), recycled: false }
    }
}

impl Deref for Floats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::Own(data) => data,
            Data::Fresh(pages) => bytemuck::cast_slice_mut(pages),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Floats, KEPT, POOL, SMALL};

    #[test]
    fn what_is_dropped_comes_back_whatever_it_holds_and_no_more_is_kept_than_is_meant_to_be() {
        // A length that nothing else in this process asks for.
        let len = 3 * SMALL + 7;
        let at = |floats: &Floats| floats.as_ptr();
        let mut first = Floats::stale(len);
        first.fill(5.0);
        let place = at(&first);
        drop(first);
        let again = Floats::stale(len - 5);
        assert_eq!((at(&again), again.len(), again[len - 6]), (place, len - 5, 5.0));
        let other = Floats::stale(len - 5);
        assert_ne!(at(&other), place);
        for _ in 0..40 {
            drop((Floats::stale(KEPT / 16), Floats::stale(KEPT / 16), Floats::stale(KEPT + 1)));
        }
        let kept = || POOL.lock().unwrap().iter().map(Vec::len).max();
        let most = kept();
        drop(Floats::from(vec![0.0; KEPT]));
        assert_eq!(kept(), most, "what was not taken from the pool does not go there");
        assert!(POOL.lock().unwrap().iter().map(Vec::len).sum::<usize>() <= KEPT);
    }

    #[test]
    fn fresh_ones_are_zeros_of_their_own() {
        for len in [0, 1, SMALL - 1, SMALL, SMALL + 1, 5 * SMALL + 3] {
            let mut fresh = Floats::fresh(len);
            assert_eq!(fresh.len(), len);
            assert!(fresh.iter().all(|x| x.to_bits() == 0));
            fresh.fill(2.0);
            let mut copy = fresh.clone();
            copy.fill(3.0);
            assert!(fresh.iter().all(|&x| x == 2.0) && copy.iter().all(|&x| x == 3.0));
        }
    }

    #[test]
    fn few_are_zeros() {
        drop(Floats::from(vec![1.0; SMALL - 1]));
        assert!(Floats::stale(SMALL - 1).iter().all(|&x| x == 0.0));
    }
}
