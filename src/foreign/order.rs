//! The order of a slot: end this call. The sender and the handler on the victim's thread agree by one word.
//!
//! | the word    | is changed by                                     | to                              |
//! |-------------|---------------------------------------------------|---------------------------------|
//! | `IDLE`      | the sender, after it has written what was seen    | `ARMED`, with the next number   |
//! | `ARMED`     | the handler: CAS                                  | `TAKEN`                         |
//! | `ARMED`     | the sender, out of patience: CAS                  | `WITHDRAWN`                     |
//! | `TAKEN`     | the handler                                       | an answer                       |
//! | `WITHDRAWN` | the handler, when the signal arrives at last: CAS | `IDLE`                          |
//! | an answer   | the sender                                        | `IDLE`                          |
//! | any         | the thread that gives the slot back, under the send lock | `IDLE`                   |
//!
//! So at most one signal of a slot is on its way: a thread that blocks signals gets no second one. An order
//! that was withdrawn ends nothing any more; one that was taken is always answered, within the handler's few
//! instructions. The number, in the upper bits, is also in the signal's payload: a signal with another
//! number belongs to no order, and is ignored.
//!
//! One thread at a time sends (the slot's send lock). `ARMED` is a release and the handler's CAS an acquire:
//! the handler sees what was seen. The answer is a release, for the writes of the handler.

use std::time::Duration;

use crate::atomics::{AtomicU64, Ordering};

const IDLE: u64 = 0;
const ARMED: u64 = 1;
const TAKEN: u64 = 2;
const WITHDRAWN: u64 = 3;
const ENDED: u64 = 4;
const MOVED: u64 = 5;
const REFUSED: u64 = 6;
/// The bits below the number.
const BITS: u32 = 3;
const MASK: u64 = (1 << BITS) - 1;

/// What the sender saw: the call's number, its six arguments, the stack pointer and the program counter.
pub(crate) type Seen = [u64; 9];

/// The answer to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The seen call was ended: it has not happened, and returns `ECANCELED`.
    Ended,
    /// The thread was not in that call any more. Nothing has changed.
    Moved,
    /// The thread is in no cancelled scope now, or in its grace, or in a wait of this crate. Nothing has
    /// changed.
    Refused,
}

/// See the table above.
#[derive(Debug)]
pub(crate) struct Order {
    /// The state, and the number of the order above it.
    word: AtomicU64,
    /// Written by the sender while the word is `IDLE`, read by the handler while it is `TAKEN`.
    seen: [AtomicU64; 9],
    /// In nanoseconds, likewise: the grace that the canceller gave; [`NO_GRACE`] if it named none.
    grace: AtomicU64,
}

/// See [`Order::grace`].
const NO_GRACE: u64 = u64::MAX;

impl Order {
    /// No order yet. All zero, so that the table needs no space in the program's file.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Order {
        Order {
            word: AtomicU64::new(IDLE),
            seen: [const { AtomicU64::new(0) }; 9],
            grace: AtomicU64::new(0),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Order {
        Order {
            word: AtomicU64::new(IDLE),
            seen: std::array::from_fn(|_| AtomicU64::new(0)),
            grace: AtomicU64::new(0),
        }
    }

    /// The sender: order the end of this call. Returns the order's number, for the payload. `None`: a signal
    /// is still on its way.
    pub(crate) fn arm(&self, seen: &Seen, grace: Option<Duration>) -> Option<u64> {
        let word = self.word.load(Ordering::Acquire);
        if word & MASK != IDLE {
            return None;
        }
        for (place, value) in self.seen.iter().zip(seen) {
            place.store(*value, Ordering::Relaxed);
        }
        let nanos = |grace: Duration| u64::try_from(grace.as_nanos()).unwrap_or(NO_GRACE - 1);
        self.grace
            .store(grace.map_or(NO_GRACE, nanos), Ordering::Relaxed);
        let number = (word >> BITS) + 1;
        self.word.store(number << BITS | ARMED, Ordering::Release);
        Some(number)
    }

    /// The sender: the answer, if there is one; the order is then done with.
    pub(crate) fn answer(&self) -> Option<Answer> {
        let word = self.word.load(Ordering::Acquire);
        let answer = match word & MASK {
            ENDED => Answer::Ended,
            MOVED => Answer::Moved,
            REFUSED => Answer::Refused,
            _ => return None,
        };
        self.word.store(word & !MASK, Ordering::Relaxed);
        Some(answer)
    }

    /// The sender: from now on the order ends nothing. False: it is being answered.
    pub(crate) fn withdraw(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word & MASK == ARMED && self.change(word, WITHDRAWN)
    }

    /// The handler: take the order with this number: what was seen, and the canceller's grace. `None`: there is none, or it was withdrawn.
    pub(crate) fn take(&self, number: u64) -> Option<(Seen, Option<u64>)> {
        let word = self.word.load(Ordering::Relaxed);
        if word >> BITS != number {
            return None;
        }
        if word & MASK == WITHDRAWN || !self.change(word, TAKEN) {
            // Withdrawn before, or between the two lines: the signal has arrived, and the slot is free.
            self.change(number << BITS | WITHDRAWN, IDLE);
            return None;
        }
        let grace = Some(self.grace.load(Ordering::Relaxed)).filter(|grace| *grace != NO_GRACE);
        Some((self.seen(), grace))
    }

    /// What was seen by the last order: for the handler that has taken it, and for senders.
    pub(crate) fn seen(&self) -> Seen {
        std::array::from_fn(|at| self.seen[at].load(Ordering::Relaxed))
    }

    /// The handler: answer the order that it has taken.
    pub(crate) fn reply(&self, number: u64, answer: Answer) {
        let state = match answer {
            Answer::Ended => ENDED,
            Answer::Moved => MOVED,
            Answer::Refused => REFUSED,
        };
        self.word.store(number << BITS | state, Ordering::Release);
    }

    /// The thread is gone, or this is a forked child: no signal is on its way. The number stays.
    pub(crate) fn reset(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !MASK, Ordering::Relaxed);
    }

    /// From `word`, which is `ARMED` or `WITHDRAWN`, to another state of the same order.
    fn change(&self, word: u64, to: u64) -> bool {
        matches!(word & MASK, ARMED | WITHDRAWN)
            && self
                .word
                .compare_exchange(
                    word,
                    word & !MASK | to,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
                .is_ok()
    }
}
