//! The core as a Rust program sees it, one module a source file.
//!
//! No test sleeps or waits for an interval to pass: the wait itself reports that a thread is in it,
//! see `support`. The model of the scopes, `scope_model.rs`, belongs to the unit tests, because it
//! needs a clock that stands still.
#![allow(clippy::unwrap_used)] // in helpers, too
#![allow(clippy::similar_names)] // a channel's two ends: begin, begun

mod barrier;
#[cfg(not(loom))]
mod channel;
mod condition;
mod event;
mod examples;
#[cfg(feature = "file")]
mod file_queue;
#[cfg(feature = "file")]
mod file_queue_crash;
#[cfg(feature = "file")]
mod file_queue_files;
#[cfg(feature = "file")]
mod file_queue_power;
#[cfg(all(target_os = "linux", not(loom)))]
mod foreign;
#[cfg(all(target_os = "linux", not(loom)))]
mod foreign_soak;
mod layers;
mod lock;
mod mutex;
mod queue;
mod scope;
mod semaphore;
mod stop;
mod support;
#[cfg(not(loom))]
mod testing;
mod token;
mod wait;
#[cfg(not(loom))]
mod work;
#[cfg(not(loom))]
mod work_model;
