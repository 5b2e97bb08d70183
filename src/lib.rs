//! Threads that can be stopped safely.
//!
//! Code is asked to stop; its locks and leases are released; force is the last rung. The core knows
//! nothing of Python: it needs a runtime around it only through the traits [`host::Host`] and
//! [`task::Interrupter`].
//!
//! # Layers
//!
//! Each module uses only modules of the layers below its own; those of one layer do not use each
//! other. A folder is one module. This table is the only list, the lowest layer first; the test
//! `tests/rust/layers.rs` compares the sources with it.
//!
//! | modules | subject |
//! |---|---|
//! | `atomics` `item` `stack` `fork` `clock` | atomics or loom's, ids of items, stacks for reports, the gate between forks and locks, time |
//! | `host` `sys` | what the core needs of the runtime around it; system calls |
//! | `cause` | which thread cancelled, why and when |
//! | `error` `ledger` | the ways a wait can end without its result; the holds of a task, so that they can be reclaimed |
//! | `foreign` | ending a blocked call of another thread |
//! | `park` | how a thread blocks until its wait is settled |
//! | `token` | sources that cancel, tokens that observe, callbacks, and the timer that cancels at deadlines |
//! | `task` | one run of a body: whether a kill may reach it, and how |
//! | `enforcer` | the thread that interrupts blocks which overrun their deadline |
//! | `scope` | blocks that can be cancelled: timeouts, shields, clean-up zones |
//! | `boundary` | the only door into a task and out of it |
//! | `wait` | one blocking wait: granted, cancelled, killed or timed out |
//! | `sync` `io` `channel` | locks, counters, flags and queues; file descriptors; channels of `crossbeam-channel` |
//! | `testing` | virtual time |
//! | `stop` | the ladder from asking to the hard stop |
//! | `at_fork` `work` | the steps around a fork; leases, in memory or (feature `file`) in a file |
//! | `python` | the binding to the Python interpreter (feature `python`) |
//!
//! # Example
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

pub mod at_fork;
mod atomics;
pub mod boundary;
pub mod cause;
#[cfg(not(loom))]
pub mod channel;
pub mod clock;
pub mod error;
pub mod foreign;
pub mod fork;
pub mod host;
mod item;
mod park;
mod stack;
#[cfg(all(unix, not(loom)))]
mod sys;
pub mod token;

#[cfg(any(feature = "python", test))]
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
