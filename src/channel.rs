//! Channels of `crossbeam-channel` in cancellable code: a receiver that disconnects when a token is
//! cancelled, and waits at channels that end when the calling thread is to stop.
//!
//! A program that waits for several channels does so with `select!`. There
//! [`CancelToken::receiver`] is one more channel: nothing is ever sent on it, and it disconnects
//! when the token is cancelled.
//!
//! # Protocol
//!
//! A [`CancelReceiver`] is a channel whose only sender is owned by a callback at the token. The
//! cancelling thread takes the callback out and drops the sender, which disconnects the channel.
//! No wake-up is lost, whichever comes first:
//! - the token is cancelled before the callback is registered: registering finds that, and drops
//!   the sender at once, so that the receiver is disconnected when it is returned;
//! - the callback is registered first: the cancelling thread finds it (hooks are added and taken
//!   under the lock of the token's node), and disconnects the channel. crossbeam keeps the same
//!   promise on its side: a select that registers at a disconnected channel does not block.
//!
//! When the receiver is dropped the callback is taken out of the token, and its sender goes with
//! it: the token keeps nothing.
//!
//! [`recv`] and [`send`] try first, without any of this. If they have to wait, they make a receiver
//! for the token of the innermost scope and one for the task's kill (a source that the kill cancels
//! whenever it may be delivered), then pass a checkpoint, and only then select. A cancellation or
//! a kill that comes before the checkpoint raises there; one that comes after it finds the
//! callbacks. The selected operation decides: a message that was taken is returned, also if the thread
//! was cancelled meanwhile, and the next checkpoint raises.
//!
//! # Which events end a wait, and which do not
//!
//! - A cancelled scope, its deadline included, and a cancelled task: yes.
//! - A kill, on each of its rungs, once neither a mask nor a held lock defers it: yes.
//! - The interrupter of the host (an asynchronous exception, a trace): no. It can do nothing about a
//!   thread that sleeps inside crossbeam; the kill ends the wait as said above, and is then delivered
//!   at the checkpoint.
//! - A block that overruns its `kill_after`: only by its cancellation, which comes before.
//! - A signal: no. crossbeam's sleep goes on; a signal handler of the host runs when the wait has
//!   ended, or after the host's longest sleep ([`Host::max_sleep`](crate::host::Host::max_sleep)) if it has
//!   set one.
//! - In simulated time (`testing`) nothing can tell when a channel is ready: the wait tries again
//!   after a virtual millisecond, then after ever longer pauses, up to a second. A channel without
//!   capacity hands nothing over there.
//!
//! # Forks
//!
//! A channel must not be used on both sides of a fork. Its own locks and waiting lists know nothing
//! of forks: a lock that another thread held at the fork stays locked in the child forever, and a
//! list may hold a thread that does not exist there, to which a message is then handed. A child
//! makes channels of its own. Tokens and the other primitives of this crate may be used in a child.

use std::convert::Infallible;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{
    Receiver, Sender, TryRecvError, TrySendError, after, bounded, never, select_biased,
};

use crate::clock::Time;
use crate::error::{AsStop, Stop};
use crate::token::{CancelSource, CancelToken, Registration};
use crate::{fork, host, park, scope, wait};

/// A wait in simulated time tries again after this; the pause doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl CancelToken {
    /// A channel that disconnects when the token is cancelled, for `select!`. Nothing is ever sent
    /// on it. It is disconnected from the start if the token is cancelled already.
    ///
    /// ```
    /// use crossbeam_channel::{select, unbounded};
    /// use desist::CancelSource;
    ///
    /// let source = CancelSource::new();
    /// let (_sender, jobs) = unbounded::<u32>();
    /// source.cancel();
    /// let stopped = source.token().receiver();
    /// let job = select! {
    ///     recv(jobs) -> job => job.ok(),
    ///     recv(stopped) -> _ => None,
    /// };
    /// assert_eq!(job, None);
    /// ```
    pub fn receiver(&self) -> CancelReceiver {
        let (sender, receiver) = bounded(0);
        CancelReceiver {
            receiver,
            _registration: self.on_cancel(move |_| drop::<Sender<Infallible>>(sender)),
        }
    }
}

/// The receiver that [`CancelToken::receiver`] returns; the token keeps nothing of it when it is
/// dropped. A clone of the [`Receiver`] inside disconnects then, as if the token were cancelled.
#[derive(Debug)]
pub struct CancelReceiver {
    receiver: Receiver<Infallible>,
    /// Owns the only sender, until the cancelling thread drops it.
    _registration: Registration,
}

impl Deref for CancelReceiver {
    type Target = Receiver<Infallible>;

    fn deref(&self) -> &Receiver<Infallible> {
        &self.receiver
    }
}

/// Why nothing was received. The channel is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecvError {
    /// The calling thread is to stop.
    Stop(Stop),
    /// The channel is empty, and all its senders are dropped.
    Disconnected,
    /// `until` has passed.
    TimedOut,
}

/// Why a message was not sent. The message is returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendError<T> {
    /// The calling thread is to stop.
    Stop(Stop, T),
    /// All receivers of the channel are dropped.
    Disconnected(T),
    /// `until` has passed.
    TimedOut(T),
}

/// Receive a message, waiting until `until` at most.
///
/// # Blocking
/// Blocks while the channel is empty.
///
/// # Cancellation
/// A checkpoint on entry, even if there is a message. A call that was cancelled or killed has
/// received none. A message that was taken first is returned, and the next checkpoint raises.
///
/// # Errors
/// The thread is to stop, the channel is empty and disconnected, or `until` has passed.
pub fn recv<T>(from: &Receiver<T>, until: Time) -> Result<T, RecvError> {
    wait::checkpoint()?;
    let received = match from.try_recv() {
        Ok(message) => Ok(message),
        Err(TryRecvError::Disconnected) => Err(RecvError::Disconnected),
        Err(TryRecvError::Empty) => {
            let selected = block(until, |stops, time| {
                select_biased! {
                    recv(from) -> message => Some(message.map_err(|_| RecvError::Disconnected)),
                    recv(stops.cancelled) -> _ => None,
                    recv(stops.killed) -> _ => None,
                    recv(time) -> _ => None,
                }
            })?;
            selected.unwrap_or(Err(RecvError::TimedOut))
        }
    };
    if received.is_ok() {
        scope::defer_pending_kill();
    }
    received
}

/// Send a message, waiting until `until` at most for a place, or for a receiver if the channel has
/// no capacity.
///
/// # Blocking
/// Blocks while the channel is full.
///
/// # Cancellation
/// A checkpoint on entry, even if there is a place. A call that was cancelled or killed has sent
/// nothing. If the message was taken first, the call succeeds, and the next checkpoint raises.
///
/// # Errors
/// The thread is to stop, all receivers are dropped, or `until` has passed. The error contains the
/// message.
pub fn send<T>(to: &Sender<T>, message: T, until: Time) -> Result<(), SendError<T>> {
    if let Err(stop) = wait::checkpoint() {
        return Err(SendError::Stop(stop, message));
    }
    let sent = match to.try_send(message) {
        Ok(()) => Ok(()),
        Err(TrySendError::Disconnected(message)) => Err(SendError::Disconnected(message)),
        Err(TrySendError::Full(message)) => wait_and_send(to, message, until),
    };
    if sent.is_ok() {
        scope::defer_pending_kill();
    }
    sent
}

fn wait_and_send<T>(to: &Sender<T>, message: T, until: Time) -> Result<(), SendError<T>> {
    // Taken only when crossbeam has selected the sending, which it then finishes.
    let mut unsent = Some(message);
    let selected = block(until, |stops, time| {
        select_biased! {
            send(to, unsent.take().expect("nothing was sent before")) -> sent => {
                Some(sent.map_err(|refused| SendError::Disconnected(refused.0)))
            }
            recv(stops.cancelled) -> _ => None,
            recv(stops.killed) -> _ => None,
            recv(time) -> _ => None,
        }
    });
    match (selected, unsent) {
        (Err(stop), Some(message)) => Err(SendError::Stop(stop, message)),
        (Ok(None), Some(message)) => Err(SendError::TimedOut(message)),
        (Ok(Some(sent)), _) => sent,
        (_, None) => unreachable!("a message that was taken was sent or returned"),
    }
}

/// The events that end a wait of the calling thread; made before its last checkpoint, see the protocol.
struct Stops {
    /// Disconnects when the innermost scope, or one that it is in, is cancelled.
    cancelled: CancelReceiver,
    /// Disconnects when a kill of the task may be delivered.
    killed: Receiver<Infallible>,
    /// Keeps `killed` connected to its task.
    _kill: Option<(Arc<CancelSource>, CancelReceiver)>,
}

impl Stops {
    fn of_calling_thread() -> Stops {
        let kill = scope::current_task().map(|task| {
            let source = task.on_delivery();
            let receiver = source.token().receiver();
            (source, receiver)
        });
        Stops {
            cancelled: scope::current_token().receiver(),
            killed: kill
                .as_ref()
                .map_or_else(never, |(_, receiver)| Receiver::clone(receiver)),
            _kill: kill,
        }
    }
}

/// Repeats `select` until it has done its operation, or until `until` (then `None`). `select` is
/// given the channels that end its wait beside its own.
fn block<R>(
    until: Time,
    mut select: impl FnMut(&Stops, &Receiver<Instant>) -> Option<R>,
) -> Result<Option<R>, Stop> {
    let mut pause = FIRST_PAUSE;
    loop {
        let stops = Stops::of_calling_thread();
        wait::checkpoint()?;
        let done = if park::scheduler::current().is_some() {
            wait::sleep_until(until.min(Time::after(pause)))?;
            pause = (2 * pause).min(LONGEST_PAUSE);
            select(&stops, &after(Duration::ZERO))
        } else {
            let slice = host::max_sleep().map_or(Time::NEVER, Time::after);
            let time = at(until.min(slice));
            fork::outside(|| select(&stops, &time))
        };
        if done.is_some() {
            return Ok(done);
        }
        if host::interrupted().is_break() {
            return Err(Stop::Interrupted);
        }
        wait::checkpoint()?;
        if Time::now() >= until {
            return Ok(None);
        }
    }
}

/// A channel that gets a message at this time.
fn at(time: Time) -> Receiver<Instant> {
    if time.is_never() {
        never()
    } else {
        after(time - Time::now())
    }
}

impl<T> SendError<T> {
    /// The message that was not sent.
    pub fn into_message(self) -> T {
        match self {
            SendError::Stop(_, message)
            | SendError::Disconnected(message)
            | SendError::TimedOut(message) => message,
        }
    }
}

impl From<Stop> for RecvError {
    fn from(stop: Stop) -> Self {
        RecvError::Stop(stop)
    }
}

impl AsStop for RecvError {
    fn stop(&self) -> Option<&Stop> {
        match self {
            RecvError::Stop(stop) => Some(stop),
            _ => None,
        }
    }
}

impl<T> AsStop for SendError<T> {
    fn stop(&self) -> Option<&Stop> {
        match self {
            SendError::Stop(stop, _) => Some(stop),
            _ => None,
        }
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecvError::Stop(stop) => stop.fmt(f),
            RecvError::Disconnected => {
                f.write_str("the channel is empty, and all its senders are dropped")
            }
            RecvError::TimedOut => f.write_str("no message came in time"),
        }
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Stop(stop, _) => stop.fmt(f),
            SendError::Disconnected(_) => f.write_str("all receivers of the channel are dropped"),
            SendError::TimedOut(_) => {
                f.write_str("the channel had no place for the message in time")
            }
        }
    }
}

impl std::error::Error for RecvError {}

impl<T: fmt::Debug> std::error::Error for SendError<T> {}
