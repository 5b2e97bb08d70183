//! Threads that can be stopped safely.
//!
//! Code is asked to stop, what it held is given back, and force is the last rung. The modules,
//! from the ground up; each uses only what stands above it:
//!
//! | module | subject |
//! |---|---|
//! | [`clock`], [`cause`], [`error`] | time, who cancelled and why, what a wait can end with |
//! | `item` | what a piece of work is known by |
//! | [`fork`], [`host`] | what the process and the runtime around it do to threads |
//! | `park` | the one place where a thread blocks |
//! | `stack` | where code was when it was stopped |
//! | [`token`] | sources that may cancel, tokens that may look, callbacks; its timer cancels at deadlines |
//! | [`scope`] | blocks of code that can be cancelled: timeouts, shields, clean-up zones |
//! | `ledger` | who holds what, so that it can be given back |
//! | [`task`] | the boundary around a body |
//! | [`wait`] | one blocking wait: granted, cancelled, killed or timed out |
//! | [`sync`] | locks, counters, flags and queues built on it |
//! | `io` | file descriptors |
//! | `testing` | virtual time |
//! | `enforcer` | the thread that forces others out of blocks that ignore their deadline |
//! | [`stop`] | the ladder from asking to hard stop |
//! | [`work`] | leases: work that a stopped worker gives back, in memory or (feature `file`) in a file |
//!
//! ```
//! use std::time::Duration;
//! use desist::{Stop, move_on_after, sleep};
//!
//! let finished = move_on_after(Duration::from_millis(5), |_scope| {
//!     sleep(Duration::from_secs(3600))?;
//!     Ok::<_, Stop>("slept")
//! });
//! assert_eq!(finished, Ok(None));
//! ```

#![cfg_attr(not(feature = "python"), allow(dead_code))] // `python` uses more

pub mod at_fork;
mod atomics;
pub mod boundary;
pub mod cause;
pub mod clock;
pub mod error;
pub mod fork;
pub mod host;
mod item;
mod park;
mod stack;
#[cfg(all(unix, not(loom)))]
mod sys;
pub mod token;

mod enforcer;
#[cfg(all(unix, not(loom)))]
pub mod io;
mod ledger;
pub mod scope;
pub mod stop;
pub mod sync;
pub mod task;
#[cfg(not(loom))]
pub mod testing;
pub mod wait;
pub mod work;

#[cfg(feature = "python")]
mod python;

#[cfg(all(test, loom))]
mod models;

// By this name the unit tests' share of `tests/rust` calls it.
#[cfg(test)]
extern crate self as desist;

pub use cause::{Cause, CauseKind};
pub use clock::Time;
pub use error::{DeadlineExceeded, ScopeMisuse, Stop};
pub use scope::{Scope, cancel_scope, cleanup, fail_after, move_on_after, shield};
pub use stack::Stack;
pub use token::{CancelSource, CancelToken, Registration};
pub use wait::{checkpoint, sleep, sleep_until};
