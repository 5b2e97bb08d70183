//! Items by their numbers.
//!
//! Numbers are given out in order and most items leave in about that order, so that neighbours lie
//! side by side and a number says where. What stays when most around it have left is moved to where
//! it keeps no place for them: the table takes room for about as many as are in it at a time.
//! Whoever comes sees to that, for then it would grow; and who comes when nobody is left gives back
//! what many had.

use std::collections::HashMap;
use std::ops::Range;

/// What can have a place of its own, or have left it; then it is as by default.
pub(super) trait Member: Default {
    fn has_left(&self) -> bool;
}

pub(super) struct Table<V> {
    /// A ring, of a power of two of places: a number's last bits are its place.
    places: Vec<V>,
    /// The numbers that have a place in it.
    here: Range<u64>,
    /// How many of them have left.
    empty: u64,
    stayed: HashMap<u64, V>,
}

/// So many places are kept for those who have left.
const SPARE: u64 = 64;
/// So many places are kept when nobody is left.
const FEW: usize = 1024;
/// So many are let go of at a time: nobody waits for all of them.
const MOVED: usize = 4;

impl<V: Member> Table<V> {
    pub(super) fn new() -> Self {
        Self {
            places: vec![V::default()],
            here: 1..1,
            empty: 0,
            stayed: HashMap::new(),
        }
    }

    /// The number of the next that comes.
    #[inline]
    pub(super) fn next(&self) -> u64 {
        self.here.end
    }

    /// Add one, under the next number. The caller makes it of one that has left.
    #[inline]
    pub(super) fn push(&mut self) -> &mut V {
        self.close_up();
        if self.here.is_empty() && self.places.len() > FEW {
            self.places = vec![V::default()];
        } else if self.len() == self.places.len() as u64 {
            self.grow();
        }
        let place = self.place(self.here.end);
        self.here.end += 1;
        &mut self.places[place]
    }

    #[inline]
    fn len(&self) -> u64 {
        self.here.end - self.here.start
    }

    #[inline]
    fn place(&self, number: u64) -> usize {
        last_bits(number) & (self.places.len() - 1)
    }

    /// Twice the places, where it is full: a number goes by one more bit.
    #[cold]
    fn grow(&mut self) {
        let half = self.places.len();
        self.places.resize_with(2 * half, V::default);
        for number in self.here.clone() {
            let place = self.place(number);
            if place >= half {
                self.places.swap(place - half, place);
            }
        }
    }

    #[inline]
    pub(super) fn get(&self, number: u64) -> Option<&V> {
        if self.here.contains(&number) {
            let value = &self.places[self.place(number)];
            (!value.has_left()).then_some(value)
        } else {
            self.stayed.get(&number)
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        if self.here.contains(&number) {
            let place = self.place(number);
            let value = &mut self.places[place];
            (!value.has_left()).then_some(value)
        } else {
            self.stayed_mut(number)
        }
    }

    #[cold]
    fn stayed_mut(&mut self, number: u64) -> Option<&mut V> {
        self.stayed.get_mut(&number)
    }

    /// Let it go, if `leave` says so: then it has left. Returns what `leave` says.
    #[inline]
    pub(super) fn take<R>(
        &mut self,
        number: u64,
        leave: impl FnOnce(&mut V) -> Option<R>,
    ) -> Option<R> {
        let value = self.get_mut(number)?;
        let left = leave(value)?;
        debug_assert!(value.has_left());
        if number < self.here.start {
            self.forget(number);
        } else {
            self.empty += 1;
        }
        Some(left)
    }

    #[cold]
    fn forget(&mut self, number: u64) {
        self.stayed.remove(&number);
    }

    /// Let go of some of the first places: those who were there have left, or are moved.
    #[inline]
    fn close_up(&mut self) {
        for _ in 0..MOVED {
            if self.here.is_empty() {
                break;
            }
            if self.places[self.place(self.here.start)].has_left() {
                self.empty -= 1;
            } else if self.empty > SPARE + self.len() / 2 {
                self.move_first();
            } else {
                break;
            }
            self.here.start += 1;
        }
    }

    #[cold]
    fn move_first(&mut self) {
        let number = self.here.start;
        let place = self.place(number);
        self.stayed
            .insert(number, std::mem::take(&mut self.places[place]));
    }
}

#[allow(clippy::cast_possible_truncation)] // so it is
#[inline]
fn last_bits(number: u64) -> usize {
    number as usize
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{MOVED, Member, SPARE, Table};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl Member for Option<u64> {
        fn has_left(&self) -> bool {
            self.is_none()
        }
    }

    impl Table<Option<u64>> {
        fn push_its_number(&mut self) {
            let number = self.next();
            assert_eq!(self.push().replace(number), None);
        }

        fn remove(&mut self, number: u64) -> Option<u64> {
            self.take(number, Option::take)
        }
    }

    #[test]
    fn long_lived_items_keep_no_memory_for_removed_ones() {
        let mut table = Table::new();
        for number in 1..=100_000 {
            assert_eq!(table.next(), number);
            table.push_its_number();
            if number % 1_000 != 0 {
                assert_eq!(table.remove(number), Some(number));
            }
        }
        let most = 4 * SPARE + MOVED as u64;
        assert!(table.len() <= most, "{}", table.len());
        assert!(table.places.len() as u64 <= 2 * most);
        for number in (1_000..=100_000).step_by(1_000) {
            assert_eq!(table.remove(number), Some(number));
            assert_eq!(table.remove(number), None);
        }
        assert_eq!(table.stayed.len(), 0);
    }

    #[test]
    fn removed_items_make_room_for_new_ones() {
        let mut table = Table::new();
        for turn in 0..1_000 {
            for number in 1..=100 {
                table.push_its_number();
                assert_eq!(table.next(), 100 * turn + number + 1);
            }
            for number in 1..=100 {
                let number = 100 * turn + number;
                assert_eq!(table.remove(number), Some(number));
            }
        }
        assert!(table.places.len() <= 256, "{}", table.places.len());
    }

    proptest! {
        #[test]
        fn it_is_a_map(
            steps in prop::collection::vec((0..3u8, any::<prop::sample::Index>()), 0..1_000),
            recent in 1..200usize,
            puts in 1..3u8,
        ) {
            let (mut table, mut model) = (Table::new(), BTreeMap::new());
            for (step, which) in steps {
                // Mostly one of the last, so that some stay when most around them have left.
                let next = usize::try_from(table.next()).unwrap();
                let back = which.index(if which.index(8) == 0 { 1 + next } else { recent });
                let number = next.saturating_sub(back) as u64;
                match step {
                    step if step < puts => {
                        model.insert(table.next(), table.next());
                        table.push_its_number();
                    }
                    _ => prop_assert_eq!(table.remove(number), model.remove(&number)),
                }
                prop_assert_eq!(table.get(number).copied().flatten(), model.get(&number).copied());
                prop_assert_eq!(table.get_mut(number).copied().flatten(), model.get(&number).copied());
            }
            for number in 0..=table.next() {
                prop_assert_eq!(table.get(number).copied().flatten(), model.get(&number).copied());
            }
        }
    }
}
