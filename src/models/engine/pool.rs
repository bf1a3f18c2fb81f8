//! Which pages of the cache are free, and how many sequences have each of the others.

/// A page that no sequence has any more is free again.
#[derive(Default)]
pub(super) struct Pool {
    free: Vec<u32>,
    /// Of each page.
    users: Vec<u32>,
}

impl Pool {
    /// So many pages, all free.
    pub fn new(pages: usize) -> Pool {
        Pool { free: (0..pages as u32).rev().collect(), users: vec![0; pages] }
    }

    pub fn pages(&self) -> usize {
        self.users.len()
    }

    /// `len` pages that nobody has; `None` if there are fewer.
    pub fn take(&mut self, len: usize) -> Option<Vec<u32>> {
        let taken = self.free.split_off(self.free.len().checked_sub(len)?);
        for &page in &taken {
            self.users[page as usize] = 1;
        }
        Some(taken)
    }

    /// Another sequence has these too.
    pub fn share(&mut self, pages: &[u32]) {
        for &page in pages {
            self.users[page as usize] += 1;
        }
    }

    /// A sequence does without these from now on.
    pub fn give_back(&mut self, pages: &[u32]) {
        for &page in pages {
            let users = &mut self.users[page as usize];
            *users -= 1;
            if *users == 0 {
                self.free.push(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_when_its_last_user_has_gone() {
        let mut pool = Pool::new(4);
        let first = pool.take(3).unwrap();
        assert_eq!(pool.take(2), None);
        assert_eq!(pool.free.len(), 1);
        pool.share(&first[..2]);
        pool.give_back(&first);
        assert_eq!(pool.free.len(), 2);
        let mut second = pool.take(2).unwrap();
        assert!(second.iter().all(|page| !first[..2].contains(page)));
        assert_eq!((pool.free.len(), pool.take(1)), (0, None));
        pool.give_back(&first[..2]);
        second.extend(pool.take(2).unwrap());
        second.sort_unstable();
        assert_eq!(second, [0, 1, 2, 3]);
        assert_eq!(Pool::new(0).take(1), None);
    }
}
