//! Callbacks that run when a token is cancelled.
//!
//! Guarantees: a callback runs exactly once, or never once it is unregistered (I17); it runs
//! outside internal locks; [`Registration::close`] returns only when it is not running, except
//! from inside any cancel callback, where it does not wait, so that no cycle of waits can form
//! (I18).

use std::cell::Cell;
use std::fmt;

use crate::atomics::{Arc, Mutex, thread_local};
use crate::cause::Cause;
use crate::clock::Time;
use crate::fork;
use crate::park::{WaitOutcome, Waiter};
use crate::token::tree::{Hook, HookId, NodeRef};

type Function = Box<dyn FnOnce(&Cause) + Send>;

pub(crate) struct Callback {
    /// Taken by the run.
    function: Mutex<Option<Function>>,
    status: Mutex<RunStatus>,
}

struct RunStatus {
    phase: RunPhase,
    /// The process in which it runs, see [`fork::generation`]: in a child of that nobody ends it.
    generation: u32,
    /// Threads in `close` that wait for the end of the run.
    waiting: Vec<Arc<Waiter>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunPhase {
    Registered,
    Running,
    Over,
}

thread_local! {
    /// How many cancel callbacks the calling thread is inside of.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

impl Callback {
    fn new(function: Function) -> Arc<Callback> {
        Arc::new(Callback {
            function: Mutex::new(Some(function)),
            status: Mutex::new(RunStatus {
                phase: RunPhase::Registered,
                generation: 0,
                waiting: Vec::new(),
            }),
        })
    }

    /// From now on `close` waits. Called by whoever took the callback out of its node's list.
    pub(crate) fn begin(&self) {
        let mut status = self.status.lock();
        status.phase = RunPhase::Running;
        status.generation = fork::generation();
    }

    /// Run the function; whatever it does, the run is over after it.
    pub(crate) fn run(&self, cause: &Cause) {
        struct Over<'a>(&'a Callback);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                INSIDE.with(|inside| inside.set(inside.get() - 1));
                let waiting = {
                    let mut status = self.0.status.lock();
                    status.phase = RunPhase::Over;
                    std::mem::take(&mut status.waiting)
                };
                for waiter in waiting {
                    waiter.settle_and_wake(WaitOutcome::Granted);
                }
            }
        }
        INSIDE.with(|inside| inside.set(inside.get() + 1));
        let _over = Over(self);
        let function = self.function.lock().take();
        if let Some(function) = function {
            fork::outside(|| function(cause));
        }
    }

    /// Wait for the end of a run in status. False: `until` came first.
    fn wait_until_over(&self, until: Time) -> bool {
        let waiter = {
            let mut status = self.status.lock();
            if status.phase != RunPhase::Running || status.generation != fork::generation() {
                return true;
            }
            let waiter = Waiter::new();
            status.waiting.push(waiter.clone());
            waiter
        };
        waiter.finish(until) == WaitOutcome::Granted
    }
}

/// A callback registered with [`CancelToken::on_cancel`](crate::CancelToken::on_cancel).
///
/// Dropping it is [`Registration::close`]: afterwards the callback is not running and never
/// will. Use [`Registration::detach`] to let it stay as long as its token. Where the callback may
/// want a lock that the dropping code holds, [`Registration::unregister`] first.
pub struct Registration {
    node: Option<NodeRef>,
    id: HookId,
    callback: Arc<Callback>,
}

impl Registration {
    pub(crate) fn new(node: &NodeRef, function: Function) -> Registration {
        let callback = Callback::new(function);
        if let Ok(id) = node.hook(Hook::Call(callback.clone())) {
            return Registration {
                node: Some(node.clone()),
                id,
                callback,
            };
        }
        // Cancelled already: run here and now.
        callback.begin();
        if let Some(cause) = node.cause() {
            callback.run(&cause);
        }
        Registration {
            node: None,
            id: 0,
            callback,
        }
    }

    /// Never blocks. True: the callback has not started and never will.
    pub fn unregister(&self) -> bool {
        self.node
            .as_ref()
            .and_then(|node| node.unhook(self.id))
            .is_some()
    }

    /// Unregister; if the callback is running on another thread, wait for its end, unless
    /// called from inside a cancel callback. Does not respond to cancellation.
    pub fn close(&self) {
        self.close_until(Time::NEVER);
    }

    /// As [`Registration::close`], but waits no longer than until `until`. False: still running.
    pub fn close_until(&self, until: Time) -> bool {
        self.unregister() || INSIDE.with(Cell::get) > 0 || self.callback.wait_until_over(until)
    }

    /// Let the callback stay registered for as long as its token lives.
    pub fn detach(mut self) {
        self.node = None;
        self.id = HookId::MAX; // no such hook, so the drop finds nothing to wait for
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.id != HookId::MAX {
            self.close();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}
