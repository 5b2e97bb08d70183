//! The killer's side of a task: requesting a kill, and delivering it rung by rung.
//!
//! All of it runs on threads other than the body's. Each delivery decides under the task's lock whether
//! the kill is due, and acts in the same critical section: it settles the waiter, or posts. So the
//! opening of a mask, the acquisition of a lock or the end of the body comes either before the
//! decision, which then sees it, or after it, and then finds the posted exception. Only the wake-up of
//! a settled waiter, and calls into the host, follow with the lock released.
//!
//! | rung | method | how `Killed` gets raised |
//! |---|---|---|
//! | `AtWait` | [`Task::deliver_at_wait`] | settles the waiter of the body's wait; the body raises when it wakes |
//! | `AsyncExc` | [`Task::deliver_async`] | posts the host's asynchronous exception, under the host's lock |
//! | `Trace` | [`Task::deliver_by_trace`] | has the host call `Task::stepped` before each step of the body |
//! | `Sigterm`, `Sigkill` | `Task::signal_process` | signals the process of a remote body |
//!
//! A rung is tried again and again, see [`stop`](crate::stop), so a delivery that finds the kill deferred
//! does nothing. A module with locks of its own defers the kill as a desist lock does (I42); since the
//! host alone knows the body's frames, it looks at them, and the decision and the post follow with the
//! host's lock held all the time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::block::Target;
use super::{KillRequest, Phase, Task, TaskInner, Tracing};
use crate::cause::Cause;
use crate::clock::Time;
#[cfg(not(loom))]
use crate::foreign::DueKill;
use crate::fork;
use crate::ledger::{KillInfo, Termination};
use crate::park::WaitOutcome;
#[cfg(any(feature = "python", all(test, not(loom))))]
use crate::stack::Stack;
use crate::task::Interrupter;
use crate::task::policy::KillOutcome;
use crate::token::CancelSource;
use crate::token::tree::NodeRef;
#[cfg(not(loom))]
use crate::token::watcher;

#[cfg(not(loom))]
impl DueKill for Task {
    fn task(&self) -> u64 {
        self.id()
    }

    fn is_due(&self) -> bool {
        self.inner.lock().due(&self.ledger).is_some()
    }
}

impl Task {
    /// True if a kill of the whole body is due.
    pub(super) fn may_deliver(&self, inner: &TaskInner) -> bool {
        inner.due(&self.ledger) == Some(Target::Body)
    }

    /// Until when a requested kill is deferred, at most; the past if it is not.
    pub(crate) fn deferred_until(&self) -> Time {
        let inner = self.inner.lock();
        let Some(request) = &inner.request else {
            return Time::from_nanos(0);
        };
        let locks = if self.ledger.len() == 0 && !inner.inside {
            Time::from_nanos(0)
        } else {
            request.lock_grace_until
        };
        inner
            .masks
            .iter()
            .map(|mask| mask.end(request))
            .fold(locks, Time::max)
    }

    /// Requests the kill: from now on the body's desist waits raise. False: there is no body to kill.
    pub(crate) fn request_kill(&self, cause: &Cause, lock_grace_until: Time) -> bool {
        let mut inner = self.inner.lock();
        if !matches!(inner.phase, Phase::Launched | Phase::Running) {
            return false;
        }
        // A second killer can only shorten the time for locks: the first cause stays.
        match &mut inner.request {
            Some(request) => {
                request.lock_grace_until = request.lock_grace_until.min(lock_grace_until);
            }
            None => {
                inner.request = Some(KillRequest {
                    cause: cause.clone(),
                    lock_grace_until,
                });
            }
        }
        self.requested.store(true, Ordering::Release);
        true
    }

    /// On the body's thread: a source that is cancelled when a kill is delivered, and not before; while the
    /// kill is deferred, so is that. For waits that are not desist's. It counts for as long as the
    /// caller keeps it.
    pub fn on_delivery(&self) -> Arc<CancelSource> {
        let source = Arc::new(CancelSource::new());
        let mut inner = self.inner.lock();
        inner.hooks.retain(|hook| hook.strong_count() > 0);
        inner.hooks.push(Arc::downgrade(&source));
        source
    }

    /// Interrupts the body's current wait, and cancels the sources of [`Task::on_delivery`], if a kill is
    /// due. Without effect if the body is in no wait: its next one sees the request. A blocking call of other
    /// code is such a wait as well, in a shield and during clean-up, too.
    pub(crate) fn deliver_at_wait(self: &Arc<Self>) {
        let (waiter, hooks, cause) = {
            let mut inner = self.inner.lock();
            let due = inner.due(&self.ledger);
            let waiter = inner.waiter.clone().zip(due);
            // Settled under the lock under which the body's thread leaves the wait: a waiter that is
            // found here is that of the wait the body is in.
            let settled = waiter.filter(|(waiter, _)| waiter.settle(WaitOutcome::Killed));
            if let Some((_, target)) = &settled {
                inner.note_delivery_at_wait(*target);
            }
            // The hooks are for a kill of the whole body; that of a block leaves them.
            let hooks = if matches!(due, Some(Target::Body | Target::Injected)) {
                std::mem::take(&mut inner.hooks)
            } else {
                Vec::new()
            };
            let cause = due.and_then(|target| inner.cause(target));
            (settled.map(|(waiter, _)| waiter), hooks, cause)
        };
        // With the lock released: a wake-up is a system call, and a hook's callbacks may do anything.
        if let Some(waiter) = waiter {
            waiter.wake();
        }
        for hook in hooks.iter().filter_map(Weak::upgrade) {
            if let Some(cause) = &cause {
                hook.node().cancel(cause.clone());
            }
        }
        if cause.is_some() {
            self.end_calls_in(self.node());
        }
    }

    /// Has blocking calls of the body's thread ended from now on, as long as the kill is due; `node`: of a scope
    /// of that thread, or the task's own.
    #[cfg(not(loom))]
    pub(super) fn end_calls_in(self: &Arc<Self>, node: &NodeRef) {
        if let Some(slot) = node.slot() {
            let this: Arc<dyn DueKill> = self.clone();
            slot.end_for(Arc::downgrade(&this));
            watcher::wake();
        }
    }

    /// In models no call of other code is ended.
    #[cfg(loom)]
    #[allow(clippy::unused_self)]
    pub(super) fn end_calls_in(self: &Arc<Self>, _node: &NodeRef) {}

    /// True if its body runs under a host that can raise exceptions in it.
    #[cfg(feature = "python")]
    pub(crate) fn has_interrupter(&self) -> bool {
        self.inner.lock().interrupter.is_some()
    }

    /// Posts the host's asynchronous exception, if the kill is due, and not sooner than [`RESEND_AFTER`]
    /// after the last one. False: the body's host cannot raise anything. May block, for the host's lock.
    pub(crate) fn deliver_async(self: &Arc<Self>) -> bool {
        let interrupter = {
            let inner = self.inner.lock();
            match (&inner.interrupter, inner.phase) {
                // Waiting for the host's lock would keep the body from running its clean-up.
                (Some(_), _) if !inner.may_send_again() => return true,
                (Some(interrupter), _) => interrupter.clone(),
                (None, Phase::Launched) => return true, // its interrupter comes with `open`
                (None, _) => return false,
            }
        };
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                let sees_body = interrupter.sees_body();
                let inside = if sees_body {
                    interrupter.inside()
                } else {
                    None
                };
                let mut inner = self.inner.lock();
                // Looked at again: while this thread waited for the host's lock, another killer may have
                // posted, or the body have opened a mask.
                if !inner.may_send_again() || !self.may_deliver(&inner) {
                    return;
                }
                if sees_body && inner.may_interrupt_body(inside) {
                    inner.post(&*interrupter);
                    inner.last_delivery = Some(Time::now());
                } else {
                    inner.traced.get_or_insert(Tracing::UntilPlace);
                    let everywhere = inner.may_interrupt_anywhere();
                    drop(inner);
                    self.begin_trace(&*interrupter, everywhere);
                }
            });
        });
        true
    }

    /// Enables tracing, so that `Killed` is raised before each step of the body at which the kill is due.
    /// False: the body's host cannot raise anything. May block, for the host's lock.
    pub(crate) fn deliver_by_trace(self: &Arc<Self>) -> bool {
        let interrupter = {
            let mut inner = self.inner.lock();
            let interrupter = match (&inner.interrupter, inner.phase) {
                (Some(interrupter), _) => interrupter.clone(),
                (None, Phase::Launched) => return true, // its interrupter comes with `open`
                (None, _) => return false,
            };
            if inner.traced.replace(Tracing::EveryStep) != Some(Tracing::EveryStep) {
                inner.unanswered = true;
            }
            interrupter
        };
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                let everywhere = {
                    let inner = self.inner.lock();
                    if inner.phase != Phase::Running {
                        return;
                    }
                    inner.may_interrupt_anywhere()
                };
                self.begin_trace(&*interrupter, everywhere);
            });
        });
        true
    }

    /// Has the host trace the body. Called inside [`Interrupter::with_host_lock`], with `traced` set.
    fn begin_trace(self: &Arc<Self>, interrupter: &dyn Interrupter, everywhere: bool) {
        interrupter.trace(self, everywhere);
        // Where the body runs meanwhile, `shut` may have come first, when there was no trace yet for it to end.
        if self.inner.lock().phase != Phase::Running {
            interrupter.end_trace(self);
        }
    }

    /// For a host that can begin to trace only on the body's own thread: posts an exception, if the kill is
    /// due, so that the thread comes to [`Task::arrived`]. Called inside [`Interrupter::trace`].
    pub fn post_to_trace(&self, interrupter: &dyn Interrupter, everywhere: bool) {
        let sees_body = interrupter.sees_body();
        let inside = if sees_body {
            interrupter.inside()
        } else {
            None
        };
        let mut inner = self.inner.lock();
        if inner.posted || !self.may_deliver(&inner) {
            return;
        }
        if inner.may_interrupt_body(inside) && (sees_body || everywhere) {
            inner.post(interrupter);
        }
    }

    /// Abandons the running body: its leases are fenced, and the locks that it holds are lost to all other
    /// threads. The caller then records the outcome and sets `over`. False: the body has ended in
    /// time, and its boundary does all that.
    pub(crate) fn abandon(&self, kill: KillInfo) -> bool {
        let traced = {
            let mut inner = self.inner.lock();
            if inner.phase != Phase::Running {
                return false;
            }
            inner.phase = Phase::Abandoned;
            let traced = inner.traced.take();
            inner.interrupter.clone().filter(|_| traced.is_some())
        };
        if let Some(interrupter) = traced {
            fork::outside(|| interrupter.with_host_lock(&mut || interrupter.end_trace(self)));
        }
        // With the lock released: a sweep takes the locks of the held resources, and wakes their waiters.
        let swept = self.ledger.sweep(&Termination::Abandoned(Arc::new(kill)));
        self.amend(|record| record.swept = swept);
        true
    }

    /// The kill that ends a hold of the body, for the poison: `number` is the hold's entry in the ledger.
    /// `None`: no kill has reached the body, or is about to, nor a block in which the hold was taken.
    #[cfg(any(feature = "python", all(test, not(loom))))]
    pub(crate) fn kill_info(&self, number: Option<u64>, stack: Option<Stack>) -> Option<KillInfo> {
        let inner = self.inner.lock();
        let request = inner.request.as_ref();
        match request.filter(|_| inner.delivered.is_some() || inner.posted) {
            Some(request) => Some(self.kill_info_of(request.cause.clone(), stack)),
            None => self.kill_info_in_block(&inner, number, stack),
        }
    }

    /// The modules with locks of their own that a kill has interrupted, since its time for them had passed.
    pub(crate) fn interrupted(&self) -> Vec<Arc<str>> {
        self.inner.lock().interrupted.clone()
    }

    /// The rung whose `Killed` was raised in the body.
    pub(crate) fn delivered(&self) -> Option<KillOutcome> {
        self.inner.lock().delivered
    }
}
