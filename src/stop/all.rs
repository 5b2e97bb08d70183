//! Several kills at once, for the end of an object that owns the tasks: a group, an executor, a pool.
//!
//! Guarantees: the tasks go up their ladders side by side, so that all of them together take no longer
//! than the slowest. A signal handler of the host that raises while the tasks are asked to end makes
//! the ladders go on with force at once; none of them is left half way (I23).
//!
//! How: the calling thread waits for the tasks, one after another, until the time of the policy's
//! `cooperative` has passed, counted from the call. It then starts a thread for each task that is left. Such
//! a thread takes its kill out of its place, and stores the result there; nothing else is shared.

use std::thread;

use parking_lot::Mutex;

use super::{Kill, KillError, KillReport, in_real_time};
use crate::clock::Time;
use crate::fork;

/// Where a kill ended.
type Ended = Result<KillReport, KillError>;

/// The results of [`finish_all`].
pub(crate) struct Finished {
    /// In the order of the kills.
    pub(crate) reports: Vec<Ended>,
    /// A signal handler of the host has raised; the host keeps the exception.
    pub(crate) interrupted: bool,
}

/// One kill that uses force.
struct Place {
    /// Its place in the order of the kills.
    index: usize,
    /// Taken by the thread that goes on with the kill.
    kill: Mutex<Option<Kill>>,
    /// Stored by that thread.
    ended: Mutex<Option<Ended>>,
}

impl Place {
    /// Goes up the rest of the ladder, unless another thread does.
    fn force(&self, on_abandon: &(dyn Fn(usize) + Sync)) {
        let Some(kill) = self.kill.lock().take() else {
            return;
        };
        let _inside = fork::inside();
        let ended = kill.force(&mut || on_abandon(self.index));
        *self.ended.lock() = Some(ended);
    }
}

/// Goes from rung to rung with all the kills, behind [`Kill::begin`]. `on_abandon` runs with the index of a
/// kill whose task is abandoned, before that task's waiters are woken.
///
/// # Blocking
///
/// For the longest of the policies' sums, plus the time in which open masks defer a kill.
///
/// # Cancellation
///
/// Not interrupted by a cancellation of the calling thread, nor, while that has a mask open, by its kill.
pub(crate) fn finish_all(kills: Vec<Kill>, on_abandon: &(dyn Fn(usize) + Sync)) -> Finished {
    let since = Time::now();
    let mut interrupted = false;
    let mut reports: Vec<Option<Ended>> = Vec::with_capacity(kills.len());
    let mut places = Vec::new();
    for (index, mut kill) in kills.into_iter().enumerate() {
        if !interrupted && kill.has_ended_when_asked(since, &mut interrupted) {
            reports.push(Some(Ok(kill.report())));
        } else {
            reports.push(None); // stored below
            places.push(Place {
                index,
                kill: Mutex::new(Some(kill)),
                ended: Mutex::new(None),
            });
        }
    }
    if !places.is_empty() {
        // In a simulation the tasks need turns to end; force itself takes real time.
        in_real_time(|| fork::outside(|| force_all(&places, on_abandon)));
    }
    for place in places {
        reports[place.index] = place.ended.into_inner();
    }
    Finished {
        reports: reports.into_iter().flatten().collect(),
        interrupted,
    }
}

/// Starts a thread for each kill, and waits for all. A kill for which there is no thread is carried on by
/// the calling one.
fn force_all(places: &[Place], on_abandon: &(dyn Fn(usize) + Sync)) {
    thread::scope(|threads| {
        for place in places {
            let killer = thread::Builder::new().name("desist-killer".into());
            let force = move || place.force(on_abandon);
            if killer.spawn_scoped(threads, force).is_err() {
                place.force(on_abandon);
            }
        }
    });
}

impl Kill {
    /// The first rung. `interrupted` is set if a signal handler of the host has raised.
    fn has_ended_when_asked(&mut self, since: Time, interrupted: &mut bool) -> bool {
        self.is_over
            || self.ask(since).unwrap_or_else(|_| {
                *interrupted = true;
                false
            })
    }
}
