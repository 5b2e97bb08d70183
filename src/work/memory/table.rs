//! Items by their numbers.
//!
//! Numbers are given out in order and most items leave in about that order, so that neighbours lie
//! side by side and a number says where. What stays when most around it have left is moved to where
//! it keeps no place for them: the table takes room for about as many as are in it.

use std::collections::{HashMap, VecDeque};

pub(super) struct Table<V> {
    row: VecDeque<Option<V>>,
    /// The number of the first place in the row.
    first: u64,
    /// How many places in the row are empty.
    empty: usize,
    stayed: HashMap<u64, V>,
}

/// So many places are kept for those who have left.
const SPARE: usize = 64;
/// So many are moved at a time: nobody waits for all of them.
const MOVED: usize = 4;

impl<V> Table<V> {
    pub(super) fn new() -> Self {
        Self {
            row: VecDeque::new(),
            first: 1,
            empty: 0,
            stayed: HashMap::new(),
        }
    }

    /// The number of the next that comes.
    #[inline]
    pub(super) fn next(&self) -> u64 {
        self.first + self.row.len() as u64
    }

    /// Add it, under the next number.
    #[inline]
    pub(super) fn push(&mut self, value: V) {
        self.row.push_back(Some(value));
    }

    #[inline]
    fn place(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    #[inline]
    pub(super) fn get(&self, number: u64) -> Option<&V> {
        match self.place(number) {
            Some(place) => self.row.get(place)?.as_ref(),
            None => self.stayed.get(&number),
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        match self.place(number) {
            Some(place) => self.row.get_mut(place)?.as_mut(),
            None => self.stayed.get_mut(&number),
        }
    }

    /// Take it out.
    #[inline]
    pub(super) fn remove(&mut self, number: u64) -> Option<V> {
        let Some(place) = self.place(number) else {
            return self.stayed.remove(&number);
        };
        let value = self.row.get_mut(place)?.take()?;
        self.empty += 1;
        self.close_up();
        if self.empty > SPARE + self.row.len() / 2 {
            self.move_some();
        }
        Some(value)
    }

    /// Let go of the places at the front that are empty.
    #[inline]
    fn close_up(&mut self) {
        while let Some(None) = self.row.front() {
            self.row.pop_front();
            self.first += 1;
            self.empty -= 1;
        }
    }

    #[cold]
    fn move_some(&mut self) {
        for _ in 0..MOVED {
            if let Some(value) = self.row.pop_front().flatten() {
                self.stayed.insert(self.first, value);
                self.first += 1;
            }
            self.close_up();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{MOVED, SPARE, Table};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_stays_keeps_no_room_for_those_who_have_left() {
        let mut table = Table::new();
        for number in 1..=100_000 {
            assert_eq!(table.next(), number);
            table.push(number);
            if number % 1_000 != 0 {
                assert_eq!(table.remove(number), Some(number));
            }
        }
        assert!(table.row.len() <= 4 * SPARE + MOVED, "{}", table.row.len());
        for number in (1_000..=100_000).step_by(1_000) {
            assert_eq!(table.remove(number), Some(number));
            assert_eq!(table.remove(number), None);
        }
        assert_eq!((table.row.len(), table.stayed.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..3u8, any::<prop::sample::Index>()), 0..1_000)) {
            let (mut table, mut model) = (Table::new(), BTreeMap::new());
            for (step, which) in steps {
                let number = 1 + which.index(1 + usize::try_from(table.next()).unwrap()) as u64;
                match step {
                    0 | 1 => {
                        model.insert(table.next(), table.next());
                        table.push(table.next());
                    }
                    _ => prop_assert_eq!(table.remove(number), model.remove(&number)),
                }
                prop_assert_eq!(table.get(number), model.get(&number));
                prop_assert_eq!(table.get_mut(number), model.get_mut(&number));
            }
            for number in 0..=table.next() {
                prop_assert_eq!(table.get(number), model.get(&number));
            }
        }
    }
}
