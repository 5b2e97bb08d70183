//! Sources, which may cancel, and tokens, which may only look.
//!
//! A source has a token; a child source is made from a token and is cancelled with it, never the
//! reverse. The first cause is final.
//!
//! Here are the documented handles. The logic is in `tree`, the callbacks are in `callback`, and the
//! threads that cancel by deadline and run the callbacks of deadlines are in `timer` and
//! `callback_thread`; `watcher`, with its `alarm`, has blocked calls of other code ended in cancelled scopes. They know
//! each other: a node that is freed leaves the timer, and a deadline that passes cancels a node. They are one
//! module in several files, under the invariants of `tree`.
//!
//! ```
//! use desist::CancelSource;
//!
//! let server = CancelSource::new();
//! let request = server.token().child();
//! assert!(!request.token().is_cancelled());
//!
//! server.cancel_because("shutting down");
//! let cause = request.token().cause().expect("cancelled with its parent");
//! assert_eq!(cause.reason.as_deref(), Some("shutting down"));
//! ```

#[cfg_attr(loom, allow(dead_code))] // a model of its own uses it
pub(crate) mod alarm;
pub(crate) mod callback;
pub(crate) mod callback_thread;
pub(crate) mod timer;
pub(crate) mod tree;
#[cfg(not(loom))]
pub(crate) mod watcher;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::Stop;
pub use callback::Registration;
use tree::NodeRef;

/// May cancel. One allocation of 72 bytes; a drop leaves nothing behind in its parent.
///
/// Dropping a source does not cancel. Its tokens live on, and can be cancelled from above only.
pub struct CancelSource {
    /// Shared with its tokens.
    node: NodeRef,
}

/// May look, wait and register callbacks, but not cancel. Cheap to clone.
#[derive(Clone)]
pub struct CancelToken {
    /// Shared with its source and its clones.
    node: NodeRef,
}

impl CancelSource {
    /// A source without a parent.
    #[inline]
    pub fn new() -> CancelSource {
        CancelSource {
            node: NodeRef::root(Some(Time::NEVER)),
        }
    }

    /// A source that never has a deadline of its own, which spares checks the look at it; below `parent`, if
    /// there is one.
    pub(crate) fn without_deadline(parent: Option<&CancelToken>) -> CancelSource {
        CancelSource {
            node: parent.map_or_else(|| NodeRef::root(None), |parent| parent.node.child(None)),
        }
    }

    /// A source without a parent that is cancelled at `deadline` at the latest.
    pub fn with_deadline(deadline: Time) -> CancelSource {
        CancelSource::timed(NodeRef::root(Some(deadline)))
    }

    /// Tell the timer, for a token may be polled without a wait that notices the deadline.
    fn timed(node: NodeRef) -> CancelSource {
        timer::arm(&node);
        CancelSource { node }
    }

    /// The token to hand out.
    pub fn token(&self) -> CancelToken {
        CancelToken {
            node: self.node.clone(),
        }
    }

    /// Cancel this source's token and everything below. True: this call was the first.
    ///
    /// Callable from any thread and from destructors. Registered callbacks run on this thread, after all
    /// waiters have been woken.
    ///
    /// # Blocking
    /// Never blocks on the cancelled threads; it takes as long as the callbacks do.
    ///
    /// # Cancellation
    /// No checkpoint.
    ///
    /// # Panics
    /// With the first panic of a callback, after all callbacks have run.
    pub fn cancel(&self) -> bool {
        self.cancel_with(None, None)
    }

    /// [`CancelSource::cancel`], with a reason, which the cause of the cancelled tokens has.
    ///
    /// # Panics
    /// As [`CancelSource::cancel`].
    pub fn cancel_because(&self, reason: &str) -> bool {
        self.cancel_with(Some(reason.into()), None)
    }

    /// [`CancelSource::cancel`], with a reason and the time that clean-up zones may still take. A later
    /// call can shorten that time, counted from the call, and never lengthens it.
    ///
    /// # Panics
    /// As [`CancelSource::cancel`].
    pub fn cancel_with(&self, reason: Option<Arc<str>>, grace: Option<Duration>) -> bool {
        self.cancel_as(CauseKind::Explicit, reason, grace)
    }

    /// [`CancelSource::cancel_with`], by another kind of cause than an explicit call.
    pub(crate) fn cancel_as(
        &self,
        kind: CauseKind,
        reason: Option<Arc<str>>,
        grace: Option<Duration>,
    ) -> bool {
        // The flag first spares the clock and the allocation of a cause that has no effect.
        let has_effect = grace.is_some() || !self.node.is_cancelled();
        has_effect && self.node.cancel(Cause::now(kind, reason, grace))
    }

    /// Move this source's deadline, earlier or later, or give it one; [`Time::NEVER`]: none. A source that is
    /// cancelled stays so.
    pub fn set_deadline(&self, deadline: Time) {
        timer::set(&self.node, deadline);
    }

    /// Cancel everything below with [`CauseKind::ScopeExited`], and leave the parent. Idempotent.
    ///
    /// # Panics
    /// As [`CancelSource::cancel`].
    pub fn close(&self) {
        self.node.close(CauseKind::ScopeExited);
    }

    pub(crate) fn node(&self) -> &NodeRef {
        &self.node
    }
}

impl Default for CancelSource {
    fn default() -> Self {
        Self::new()
    }
}

impl CancelToken {
    /// A token to hand out. Its user may only poll, so the timer is told of its deadlines.
    pub(crate) fn from_node(node: NodeRef) -> CancelToken {
        timer::arm_path(&node);
        CancelToken { node }
    }

    /// A token for code that waits and never only polls, and so notices deadlines itself.
    pub(crate) fn from_unarmed(node: NodeRef) -> CancelToken {
        CancelToken { node }
    }

    /// A token that is never cancelled.
    pub fn never() -> CancelToken {
        CancelToken {
            node: NodeRef::root(None),
        }
    }

    /// A token that is cancelled with any of `tokens`, with that one's cause. Its deadline is the earliest
    /// of theirs. It leaves nothing behind in them when it is dropped.
    pub fn any_of(tokens: &[&CancelToken]) -> CancelToken {
        let nodes: Vec<&NodeRef> = tokens.iter().map(|token| &token.node).collect();
        CancelToken {
            node: NodeRef::linked(&nodes),
        }
    }

    /// True once it is cancelled; it stays so. One atomic load.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        self.node.is_cancelled()
    }

    /// The word that [`CancelToken::is_cancelled`] loads, for code in other languages: its lowest bit is
    /// set once cancelled, the other bits mean nothing. Valid as long as this token, or a clone of it,
    /// lives.
    #[cfg(not(loom))]
    pub fn flag(&self) -> *const std::sync::atomic::AtomicU32 {
        timer::arm_path(&self.node);
        self.node.flag()
    }

    /// `Err` once cancelled. Never blocks.
    ///
    /// # Errors
    /// [`Stop::Cancelled`] with the cause.
    pub fn check(&self) -> Result<(), Stop> {
        match self.cause() {
            None => Ok(()),
            Some(cause) => Err(Stop::Cancelled(cause)),
        }
    }

    /// The cause, once cancelled: its own or that of the nearest ancestor that has one.
    pub fn cause(&self) -> Option<Cause> {
        self.node.cause()
    }

    /// The earliest deadline of this token and those above it.
    pub fn deadline(&self) -> Time {
        self.node.effective_deadline()
    }

    /// A source that is cancelled with this token.
    pub fn child(&self) -> CancelSource {
        CancelSource {
            node: self.node.child(Some(Time::NEVER)),
        }
    }

    /// A source that is cancelled with this token, and at `deadline` at the latest.
    pub fn child_with_deadline(&self, deadline: Time) -> CancelSource {
        CancelSource::timed(self.node.child(Some(deadline)))
    }

    /// Run `callback` when the token is cancelled: on the thread that cancels, or on the callback thread if
    /// a deadline does; here and now if it is cancelled already.
    ///
    /// The callback runs once, with no lock of this crate held, after all waiters have been woken. It
    /// should be short: later callbacks wait for it.
    ///
    /// # Blocking
    /// Blocks only while it runs the callback itself.
    ///
    /// # Panics
    /// With the callback's panic, if it runs here and now.
    pub fn on_cancel(&self, callback: impl FnOnce(&Cause) + Send + 'static) -> Registration {
        Registration::new(&self.node, Box::new(callback))
    }

    pub(crate) fn node(&self) -> &NodeRef {
        &self.node
    }
}

impl fmt::Debug for CancelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelSource")
            .field("cause", &self.node.cause())
            .finish()
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken")
            .field("cause", &self.node.cause())
            .finish()
    }
}
