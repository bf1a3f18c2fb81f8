//! Which rows of the cache are taken.

use std::ops::Range;

/// Free rows of a cache, as ranges in order, apart from each other.
#[derive(Default)]
pub(super) struct Rows {
    free: Vec<Range<usize>>,
}

impl Rows {
    /// `total` rows, all free.
    pub fn new(total: usize) -> Rows {
        Rows { free: (total > 0).then_some(0..total).into_iter().collect() }
    }

    /// The first place with `len` rows next to each other.
    pub fn take(&mut self, len: usize) -> Option<usize> {
        let i = self.free.iter().position(|range| range.len() >= len)?;
        let start = self.free[i].start;
        self.free[i].start += len;
        if self.free[i].is_empty() {
            self.free.remove(i);
        }
        Some(start)
    }

    pub fn give_back(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let i = self.free.partition_point(|free| free.start < range.start);
        self.free.insert(i, range);
        // Joined with the next one, then with the one before.
        for left in [i, i.wrapping_sub(1)] {
            if let Some([a, b]) =
                self.free.get(left..left.saturating_add(2)).and_then(|two| two.first_chunk())
                && a.end == b.start
            {
                self.free[left].end = b.end;
                self.free.remove(left + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_once_and_join_again() {
        let mut rows = Rows::new(100);
        let starts: Vec<usize> = (0..4).map(|_| rows.take(25).unwrap()).collect();
        assert_eq!(starts, [0, 25, 50, 75]);
        assert_eq!(rows.take(1), None);
        for start in [25, 75, 0] {
            rows.give_back(start..start + 25);
        }
        assert_eq!(rows.free, [0..50, 75..100]);
        assert_eq!((rows.take(51), rows.take(50)), (None, Some(0)));
        rows.give_back(50..75);
        rows.give_back(0..50);
        assert_eq!(rows.free, std::iter::once(0..100).collect::<Vec<_>>());
        assert_eq!(Rows::new(0).take(1), None);
    }
}
