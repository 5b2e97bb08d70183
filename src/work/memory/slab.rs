//! Items by their numbers.
//!
//! Numbers are given out in order, and most items leave in about that order. So the items lie in a
//! window, a deque that begins with the number `first`, and a number is a place in it; an item that
//! left leaves a vacant place. An item that stays while most of those behind it leave would keep
//! the window long: it is moved to a map, `overflow`, so that the window can shrink. The slab takes
//! memory for about as many items as are in it at a time.
//!
//! Guarantees:
//! 1. A number is given out once. An item is found by its number from its push until its removal,
//!    whether it was moved meanwhile or not, and a number whose item has left finds nothing.
//! 2. A number below `first` is in `overflow` or has left; another is in the window, or has left and
//!    its place is vacant, or was not given out yet.
//! 3. `vacant` is the number of vacant places in the window. A push takes places out of its front
//!    while the first is vacant, or while more than [`SPARE`] and half of the window are.
//! 4. No call takes long: [`SeqSlab::push`] alone moves items, and takes out [`CLOSED_AT_ONCE`] places
//!    at most. As it adds one, the window becomes shorter by up to three a push, whatever left it.
//!
//! All calls are made under the lock of the queue, and no other lock is involved. Values are returned
//! and never dropped, except with the slab itself.
//!
//! Costs: an index computation for an item in the window, a look in a hash map for one that was moved,
//! and each item is moved once at most. The map keeps the capacity that it once had.
//!
//! Checked against a `BTreeMap` by the property test at the end, and for its memory by the other tests.

use std::collections::{HashMap, VecDeque};

/// See the header. Written by `push`, which moves items, and `remove_if`.
pub(super) struct SeqSlab<V> {
    /// The places of the numbers from `first` on, the last one pushed at the end. `None`: its item
    /// has left.
    window: VecDeque<Option<V>>,
    /// The number of the window's first place; of the next item if the window is empty.
    first: u64,
    /// Vacant places in the window. Raised by a removal, lowered when `close_up` takes one out.
    vacant: usize,
    /// Items with numbers below `first`, which stayed while most of those behind them left.
    overflow: HashMap<u64, V>,
}

/// Vacant places that the window may have beside half of its length, before items are moved.
const SPARE: usize = 64;
/// The greatest capacity that an empty window keeps.
const KEPT: usize = 1024;
/// The most places that one push takes from the window's front.
const CLOSED_AT_ONCE: usize = 4;

impl<V> SeqSlab<V> {
    pub(super) fn new() -> Self {
        Self {
            window: VecDeque::new(),
            first: 1,
            vacant: 0,
            overflow: HashMap::new(),
        }
    }

    /// The number of the next item that is pushed.
    #[inline]
    pub(super) fn next(&self) -> u64 {
        self.first + self.window.len() as u64
    }

    /// Add an item under the next number.
    #[inline]
    pub(super) fn push(&mut self, value: V) {
        self.close_up();
        if self.window.is_empty() && self.window.capacity() > KEPT {
            self.window = VecDeque::new();
        }
        self.window.push_back(Some(value));
    }

    /// The place of this number in the window. `None`: it is below the window.
    #[inline]
    fn place(&self, number: u64) -> Option<usize> {
        number
            .checked_sub(self.first)
            .map(|place| usize::try_from(place).unwrap_or(usize::MAX))
    }

    /// The item with this number, unless it has left.
    #[inline]
    pub(super) fn get(&self, number: u64) -> Option<&V> {
        match self.place(number) {
            Some(place) => self.window.get(place)?.as_ref(),
            None => self.overflow.get(&number),
        }
    }

    /// As [`SeqSlab::get`], to change it.
    #[inline]
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        match self.place(number) {
            Some(place) => self.window.get_mut(place)?.as_mut(),
            None => self.overflow.get_mut(&number),
        }
    }

    /// All items, in no order.
    #[cfg(feature = "python")]
    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        self.window.iter().flatten().chain(self.overflow.values())
    }

    /// All items with their numbers, in no order.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u64, &V)> {
        let window = (self.first..).zip(&self.window);
        let window = window.filter_map(|(number, value)| Some((number, value.as_ref()?)));
        let overflow = self.overflow.iter().map(|(number, value)| (*number, value));
        window.chain(overflow)
    }

    /// Remove an item, if it is there and `leaves` agrees. One look instead of a `get_mut` and a
    /// removal, since every acknowledged item goes this way.
    #[inline]
    pub(super) fn remove_if(
        &mut self,
        number: u64,
        leaves: impl FnOnce(&mut V) -> bool,
    ) -> Option<V> {
        let Some(place) = self.place(number) else {
            return self.remove_from_overflow(number, leaves);
        };
        let removed = self.window.get_mut(place)?.take_if(leaves)?;
        self.vacant += 1;
        Some(removed)
    }

    /// [`SeqSlab::remove_if`] for an item that was moved. Out of line: most items are in the window.
    #[cold]
    fn remove_from_overflow(
        &mut self,
        number: u64,
        leaves: impl FnOnce(&mut V) -> bool,
    ) -> Option<V> {
        if leaves(self.overflow.get_mut(&number)?) {
            self.overflow.remove(&number)
        } else {
            None
        }
    }

    /// Take some of the first places from the window: vacant ones, and while most of the window is
    /// vacant those of items, which are moved.
    #[inline]
    fn close_up(&mut self) {
        for _ in 0..CLOSED_AT_ONCE {
            match self.window.front() {
                Some(None) => self.vacant -= 1,
                Some(Some(_)) if self.vacant > SPARE + self.window.len() / 2 => self.move_first(),
                _ => break,
            }
            self.window.pop_front();
            self.first += 1;
        }
    }

    /// Move the item in the first place to `overflow`; the place is then taken out, so it is not
    /// counted as vacant.
    #[cold]
    fn move_first(&mut self) {
        if let Some(value) = self.window.front_mut().and_then(Option::take) {
            self.overflow.insert(self.first, value);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{CLOSED_AT_ONCE, SPARE, SeqSlab};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl SeqSlab<u64> {
        fn push_its_number(&mut self) {
            self.push(self.next());
        }

        fn remove(&mut self, number: u64) -> Option<u64> {
            self.remove_if(number, |_| true)
        }
    }

    #[test]
    fn an_item_that_stays_keeps_no_room_for_those_that_left() {
        let mut slab = SeqSlab::new();
        for number in 1..=100_000 {
            assert_eq!(slab.next(), number);
            slab.push_its_number();
            if number % 1_000 != 0 {
                assert_eq!(slab.remove(number), Some(number));
            }
        }
        let most = 4 * SPARE + CLOSED_AT_ONCE;
        assert!(slab.window.len() <= most, "{}", slab.window.len());
        assert!(slab.window.capacity() <= 2 * most);
        for number in (1_000..=100_000).step_by(1_000) {
            assert_eq!(slab.remove(number), Some(number));
            assert_eq!(slab.remove(number), None);
        }
        assert_eq!(slab.overflow.len(), 0);
    }

    #[test]
    fn items_that_left_make_room_for_those_that_come() {
        let mut slab = SeqSlab::new();
        for turn in 0..1_000 {
            for number in 1..=100 {
                slab.push_its_number();
                assert_eq!(slab.next(), 100 * turn + number + 1);
            }
            for number in 1..=100 {
                let number = 100 * turn + number;
                assert_eq!(slab.remove(number), Some(number));
            }
        }
        assert!(slab.window.capacity() <= 256, "{}", slab.window.capacity());
    }

    #[test]
    fn an_item_that_may_not_leave_stays() {
        let mut slab = SeqSlab::new();
        slab.push_its_number();
        assert_eq!(slab.remove_if(1, |_| false), None);
        assert_eq!(slab.remove(1), Some(1));
    }

    proptest! {
        #[test]
        fn it_is_a_map(
            steps in prop::collection::vec((0..3u8, any::<prop::sample::Index>()), 0..1_000),
            recent in 1..200usize,
            puts in 1..3u8,
        ) {
            let (mut slab, mut model) = (SeqSlab::new(), BTreeMap::new());
            for (step, which) in steps {
                // Mostly one of the last, so that some stay when most around them have left.
                let next = usize::try_from(slab.next()).unwrap();
                let back = which.index(if which.index(8) == 0 { 1 + next } else { recent });
                let number = next.saturating_sub(back) as u64;
                match step {
                    step if step < puts => {
                        model.insert(slab.next(), slab.next());
                        slab.push_its_number();
                    }
                    _ => prop_assert_eq!(slab.remove(number), model.remove(&number)),
                }
                prop_assert_eq!(slab.get(number), model.get(&number));
                prop_assert_eq!(slab.get_mut(number), model.get_mut(&number));
            }
            let mut numbered: Vec<_> = slab.numbered().map(|(number, value)| (number, *value)).collect();
            numbered.sort_unstable();
            prop_assert_eq!(numbered, model.clone().into_iter().collect::<Vec<_>>());
            for number in 0..=slab.next() {
                prop_assert_eq!(slab.get(number), model.get(&number));
            }
        }
    }
}
