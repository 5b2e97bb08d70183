//! The signal: its number, and its handler, which decides on the victim's own thread.
//!
//! A call that is interrupted with no effect is found in one of two forms, both prepared by the kernel before
//! the handler begins:
//!
//! 1. To be restarted: the program counter is on the instruction of the call, and the registers are those
//!    with which it was made. It has not been made then, or is about to be made for the first time.
//! 2. Interrupted: the program counter is behind the instruction, and the result is `-EINTR`. That is the form
//!    of the calls which the kernel never restarts for a handler.
//!
//! In both forms the stack pointer and the other registers are those that were seen. The handler then puts
//! the program counter behind the instruction, and `-ECANCELED` into the result. In the first form the number of
//! the call is compared as well. In the second, where the result has replaced it, the place in the code
//! and all arguments say which call it was: the place makes other calls only in the C library's
//! function `syscall`, and no call of the table has the arguments of a `futex`, an address and an
//! operation, in the same registers, but `poll` with as many descriptors as that operation's number and its
//! array at the address of that very futex.
//!
//! Async-signal-safe: registers, atomics of a static table, and the system calls `gettid`, `getpid` and
//! `clock_gettime`. No thread-local
//! of this library, no allocation, no lock. `errno` is kept.
//!
//! The signal is the first real-time one from the top that has no handler; below `SIGRTMAX` first, for
//! some tools use that one themselves. Before each use the disposition is looked at: where other code has
//! taken the signal since, nothing is sent any more.
#![allow(unsafe_code)] // a signal's handler

use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::calls::is_sleep;
use crate::foreign::order::{Answer, Seen};
use crate::foreign::{Slot, Unavailable, slot};

/// The signal's number; 0: none has been chosen yet.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// `siginfo_t` of a queued signal, as the kernel has it on 64-bit systems.
#[repr(C)]
pub(super) struct Info {
    pub(super) signal: i32,
    pub(super) errno: i32,
    pub(super) code: i32,
    pub(super) unused: i32,
    /// The sender's process.
    pub(super) pid: i32,
    pub(super) uid: u32,
    /// See [`payload`].
    pub(super) value: u64,
    pub(super) rest: [u64; 12],
}

/// The signal's payload: the number of the order, and the index of the slot.
pub(super) fn payload(number: u64, index: usize) -> u64 {
    number << 16 | index as u64
}

/// How many calls this process has had ended. Written by handlers.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// See [`crate::foreign::ended_calls`].
pub(crate) fn ended() -> u64 {
    ENDED.load(Ordering::Relaxed)
}

/// The signal that has our handler, which is installed if there is none yet. Called with the send lock
/// held, or by [`crate::foreign::status`].
pub(crate) fn signal() -> Result<i32, Unavailable> {
    match SIGNAL.load(Ordering::Acquire) {
        0 => install(),
        number if disposition(number, false) == handler_address() => Ok(number),
        number => Err(Unavailable::SignalTaken(number)),
    }
}

/// The handler's address, which is its disposition.
fn handler_address() -> libc::sighandler_t {
    let handler: extern "C" fn(i32, *mut Info, *mut libc::ucontext_t) = on_signal;
    handler as libc::sighandler_t
}

/// The disposition of a signal; it is replaced by our handler if `install` says so.
fn disposition(number: i32, install: bool) -> libc::sighandler_t {
    // SAFETY: sigaction reads the first structure and fills the second. All zero is valid for both: no signal is
    // blocked in the handler but its own. The handler is async-signal-safe, and of the type that SA_SIGINFO
    // asks for.
    unsafe {
        let mut ours: libc::sigaction = mem::zeroed();
        ours.sa_sigaction = handler_address();
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        let new = if install {
            &raw const ours
        } else {
            ptr::null()
        };
        let mut now: libc::sigaction = mem::zeroed();
        libc::sigaction(number, new, &raw mut now);
        now.sa_sigaction
    }
}

/// Installs the handler for the first free signal.
fn install() -> Result<i32, Unavailable> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let numbers = [last - 1, last].into_iter();
    for number in numbers.chain((first..last - 1).rev()) {
        if disposition(number, false) == libc::SIG_DFL {
            disposition(number, true);
            let chosen = SIGNAL.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
            return Ok(chosen.map_or_else(|other| other, |_| number));
        }
    }
    Err(Unavailable::NoSignal)
}

/// The handler. Without effect unless this process has queued the signal, for an order that stands.
extern "C" fn on_signal(_number: i32, info: *mut Info, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel passes both, valid for the length of the call, and nothing else uses them; errno is
    // the thread's own.
    unsafe {
        let errno = *libc::__errno_location();
        handle(&*info, &mut *context);
        *libc::__errno_location() = errno;
    }
}

/// [`on_signal`], for the interrupted registers.
fn handle(info: &Info, context: &mut libc::ucontext_t) {
    let (pid, tid) = (rustix::process::getpid(), rustix::thread::gettid());
    let (pid, tid) = (pid.as_raw_nonzero().get(), tid.as_raw_nonzero().get());
    if info.code != libc::SI_QUEUE || info.pid != pid {
        return;
    }
    let (number, index) = (info.value >> 16, info.value & 0xffff);
    let mine = |slot: &&Slot| i32::try_from(slot.tid.load(Ordering::Relaxed)) == Ok(tid);
    let Some(slot) = usize::try_from(index).ok().and_then(slot).filter(mine) else {
        return;
    };
    let Some((seen, grace)) = slot.order.take(number) else {
        return;
    };
    let answer = match Registers(context).end_if(&seen, || decide(slot, grace, is_sleep(&seen))) {
        Some(true) => Answer::Ended,
        Some(false) => Answer::Refused,
        None => Answer::Moved,
    };
    slot.order.reply(number, answer);
}

/// Decides whether a call of the slot's thread is ended; if so counts it, and begins the grace. On that thread,
/// or while it cannot run.
pub(super) fn decide(slot: &Slot, grace: Option<u64>, is_sleep: bool) -> bool {
    let now = now();
    if !slot.may_end(now) {
        return false;
    }
    // Code that has not seen the error of the last one has not begun to clean up, either.
    if slot.not_before.load(Ordering::Relaxed) == 0 || slot.is_unraised() {
        let grace = grace.unwrap_or_else(|| slot.grace.load(Ordering::Relaxed));
        slot.not_before
            .store(now.saturating_add(grace).max(1), Ordering::Relaxed);
    }
    slot.note_unraised(is_sleep);
    slot.ended.fetch_add(1, Ordering::Relaxed);
    ENDED.fetch_add(1, Ordering::Relaxed);
    true
}

/// The monotonic clock, in nanoseconds.
#[allow(clippy::cast_sign_loss)] // neither field is ever negative
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The registers of the interrupted code, which continues with them when the handler returns.
struct Registers<'a>(&'a mut libc::ucontext_t);

/// The result of a call that was interrupted, and the one that is put in its place, as the kernel has them.
const INTERRUPTED: u64 = (libc::EINTR as u64).wrapping_neg();
const CANCELED: u64 = (libc::ECANCELED as u64).wrapping_neg();

impl Registers<'_> {
    /// Ends the seen call, if the registers are those of that call, without effect, and `may` says so. `None`:
    /// they are not.
    fn end_if(&mut self, seen: &Seen, may: impl FnOnce() -> bool) -> Option<bool> {
        if !self.are_of(seen) {
            return None;
        }
        let ends = may();
        if ends {
            self.finish(seen);
        }
        Some(ends)
    }
}

#[cfg(target_arch = "x86_64")]
impl Registers<'_> {
    /// The length of the instruction `syscall`.
    const INSTRUCTION: u64 = 2;

    fn get(&self, register: i32) -> u64 {
        u64::from_ne_bytes(self.0.uc_mcontext.gregs[register.unsigned_abs() as usize].to_ne_bytes())
    }

    fn set(&mut self, register: i32, value: u64) {
        self.0.uc_mcontext.gregs[register.unsigned_abs() as usize] =
            i64::from_ne_bytes(value.to_ne_bytes());
    }

    /// True for the two forms of the module's header.
    fn are_of(&self, seen: &Seen) -> bool {
        const ARGUMENTS: [i32; 6] = [
            libc::REG_RDI,
            libc::REG_RSI,
            libc::REG_RDX,
            libc::REG_R10,
            libc::REG_R8,
            libc::REG_R9,
        ];
        let [number, arguments @ .., stack, place] = *seen;
        let (at, result) = (self.get(libc::REG_RIP), self.get(libc::REG_RAX));
        let to_restart = at == place.wrapping_sub(Self::INSTRUCTION) && result == number;
        let interrupted = at == place && result == INTERRUPTED;
        (to_restart || interrupted)
            && self.get(libc::REG_RSP) == stack
            && ARGUMENTS.map(|register| self.get(register)) == arguments
    }

    fn finish(&mut self, seen: &Seen) {
        self.set(libc::REG_RIP, seen[8]);
        self.set(libc::REG_RAX, CANCELED);
    }
}

#[cfg(target_arch = "aarch64")]
impl Registers<'_> {
    /// The length of the instruction `svc`.
    const INSTRUCTION: u64 = 4;

    /// True for the two forms of the module's header. The number stays in its register in both; the first
    /// argument's is that of the result.
    fn are_of(&self, seen: &Seen) -> bool {
        let [number, first, arguments @ .., stack, place] = *seen;
        let context = &self.0.uc_mcontext;
        let result = context.regs[0];
        let to_restart = context.pc == place.wrapping_sub(Self::INSTRUCTION) && result == first;
        let interrupted = context.pc == place && result == INTERRUPTED;
        (to_restart || interrupted)
            && context.sp == stack
            && context.regs[8] == number
            && context.regs[1..6] == arguments
    }

    fn finish(&mut self, seen: &Seen) {
        self.0.uc_mcontext.pc = seen[8];
        self.0.uc_mcontext.regs[0] = CANCELED;
    }
}
