//! Callbacks that run when a token is cancelled.
//!
//! Guarantees:
//! 1. A callback runs exactly once, or never once it is unregistered (I17).
//! 2. It runs with no internal lock held.
//! 3. [`Registration::close`], and the drop, return only when the callback is not running. From inside
//!    any cancel callback they do not wait, so that no cycle of waits can form (I18).
//!
//! Protocol. A callback is a hook of its token's node, and its run is owned by the thread that removes
//! that hook. The removal and the step to Running are one critical section of the node's lock, so a
//! thread that does not find the hook any more finds the callback running or over:
//!
//! | phase      | event                                        | becomes                                |
//! |------------|----------------------------------------------|----------------------------------------|
//! | Registered | `unregister` removes the hook                | dropped without a run                  |
//! | Registered | the canceller pops the hook: `begin`         | Running                                |
//! | Registered | `on_cancel` finds the token cancelled        | Running, on the registering thread     |
//! | Running    | the function returns or panics               | Over; the waiting threads are woken |
//! | Running    | seen in a forked child, begun in the parent  | counts as over: its thread is not here |
//!
//! Lock order: the node's lock, then `status`. `function` and `status` are each locked alone otherwise,
//! and neither while the function runs or a thread is woken.
//!
//! [`Registration::close`] is a wait like any other, so it is in `wait`; the drop, which can report
//! nothing, waits here.

use std::cell::Cell;
use std::fmt;

use crate::atomics::{Arc, Mutex, thread_local};
use crate::cause::Cause;
use crate::fork;
use crate::park::{Ticket, Waiter};
use crate::token::tree::{Hook, HookId, NodeRef};

/// A user's callback.
type Function = Box<dyn FnOnce(&Cause) + Send>;

/// A registered function and the state of its run. Shared by its hook and its [`Registration`].
pub(crate) struct Callback {
    /// Taken by the run, which then owns it. Dropped with the callback if there is none.
    function: Mutex<Option<Function>>,
    /// See the table above.
    status: Mutex<RunStatus>,
}

/// The fields that the mutex `status` protects.
struct RunStatus {
    /// Written by the thread that runs the callback.
    phase: RunPhase,
    /// The process in which it runs, see [`fork::generation`]; set with Running. In a forked child no
    /// thread ends a run that began in the parent.
    generation: u32,
    /// Threads that wait for the end of the run. Pushed while Running, emptied with Over.
    waiting: Vec<Ticket>,
}

impl RunStatus {
    /// True while a thread of this process is in the function, or about to call it.
    fn is_running(&self) -> bool {
        self.phase == RunPhase::Running && self.generation == fork::generation()
    }
}

/// See the table above.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RunPhase {
    /// Its hook is in the node, or was removed unrun.
    Registered,
    /// Its hook is gone and its thread is about to call the function, or in it.
    Running,
    /// The function has returned or panicked.
    Over,
}

thread_local! {
    /// How many cancel callbacks the calling thread is inside of: callbacks may cancel, and nest.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

/// True on a thread that is inside a cancel callback, of any token.
pub(crate) fn is_inside() -> bool {
    INSIDE.with(Cell::get) > 0
}

impl Callback {
    /// A callback that has not run.
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

    /// From now on `close` waits. Called by the thread that removes the hook, under the node's lock.
    pub(crate) fn begin(&self) {
        let mut status = self.status.lock();
        status.phase = RunPhase::Running;
        status.generation = fork::generation();
    }

    /// Run the function, with no lock held and the thread outside the core, so that a fork does not wait
    /// for it. However it ends, the run is over after it.
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
                for ticket in waiting.iter().filter(|ticket| ticket.grant()) {
                    ticket.wake();
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

    /// True while the function runs.
    pub(crate) fn is_running(&self) -> bool {
        self.status.lock().is_running()
    }

    /// Grant the ticket at the end of the run; at once if the function does not run.
    pub(crate) fn enqueue(&self, ticket: Ticket) {
        let mut status = self.status.lock();
        if status.is_running() {
            status.waiting.push(ticket);
        } else {
            ticket.grant(); // its thread, the calling one, has not parked
        }
    }

    /// Forget a ticket.
    pub(crate) fn dequeue(&self, ticket: &Ticket) {
        self.status
            .lock()
            .waiting
            .retain(|waiting| waiting != ticket);
    }

    /// Wait for the end of a run in progress. Nothing else ends the wait, not even a signal: the
    /// exception of a signal handler would have no caller to go to.
    fn wait_until_over(&self) {
        let waiter = Waiter::new();
        self.enqueue(Ticket::new(&waiter, 0));
        waiter.wait_uninterruptible();
    }
}

/// A callback registered with [`CancelToken::on_cancel`](crate::CancelToken::on_cancel).
///
/// Dropping it is like [`Registration::close`], with a wait that nothing else ends: afterwards the
/// callback is not running and never will. Use [`Registration::detach`] to let it stay as long as its token. Where the callback may
/// wait for a lock that the dropping code holds, call [`Registration::unregister`] first.
///
/// ```
/// use desist::CancelSource;
///
/// let source = CancelSource::new();
/// let kept = source.token().on_cancel(|cause| println!("stopped: {cause}"));
/// let removed = source.token().on_cancel(|_| unreachable!("it was removed"));
/// assert!(removed.unregister(), "it has not started and never will");
/// source.cancel_because("a test"); // runs the first one, here
/// assert!(!kept.unregister(), "it has run");
/// ```
pub struct Registration {
    /// Where the hook is, or was. `None`: the callback ran at registration, or was detached.
    node: Option<NodeRef>,
    /// The hook; `HookId::MAX` once detached.
    id: HookId,
    /// To wait for the end of its run.
    callback: Arc<Callback>,
}

impl Registration {
    /// Register `function` at `node`; if it is cancelled already, run it here and now.
    pub(crate) fn new(node: &NodeRef, function: Function) -> Registration {
        let callback = Callback::new(function);
        if let Ok(id) = node.hook(Hook::Call(callback.clone())) {
            return Registration {
                node: Some(node.clone()),
                id,
                callback,
            };
        }
        // Refused: the node is cancelled. Not under its lock, which is no loss: no hook was added.
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

    /// True if it keeps its token's node: it does not if the callback ran at registration.
    #[cfg(feature = "python")]
    pub(crate) fn has_node(&self) -> bool {
        self.node.is_some()
    }

    /// Remove the callback, if it has not started. True: it never will. False: it is running or over.
    ///
    /// # Blocking
    /// Never blocks, and is no checkpoint.
    pub fn unregister(&self) -> bool {
        self.node
            .as_ref()
            .and_then(|node| node.unhook(self.id))
            .is_some()
    }

    /// The registered function and the state of its run.
    pub(crate) fn callback(&self) -> &Callback {
        &self.callback
    }

    /// Let the callback stay registered for as long as its token lives.
    pub fn detach(mut self) {
        self.node = None;
        self.id = HookId::MAX; // marks it, for the drop neither unregisters nor waits
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.id != HookId::MAX && !self.unregister() && !is_inside() {
            self.callback.wait_until_over();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}
