//! The system calls that may be ended, and why each may: interrupted by a signal, it has had no effect.
//!
//! A call that has transferred something returns the count, and is never found interrupted. A call that is
//! not in the table is never ended: above all `futex` (the C library aborts the process on a result that it
//! does not know), `close` and `munmap` (they may have had their effect), and the waits for signals.
//!
//! | calls                                   | interrupted, it has                                          |
//! |-----------------------------------------|---------------------------------------------------------------|
//! | `read`..., `recv`..., `msgrcv`          | taken no byte and no message                                  |
//! | `write`..., `send`..., `splice`...      | written no byte                                               |
//! | `accept`, `accept4`                     | taken no connection out of the queue                          |
//! | `connect`                               | left the socket connecting, as any failed `connect` may: it can only be closed |
//! | `poll`, `select`, `epoll_wait`...       | reported no event; an edge that was not reported stays        |
//! | `wait4`, `waitid`                       | reaped no child                                               |
//! | `flock`, `fcntl` with `F_SETLKW`        | taken no lock                                                 |
//! | `semop`, `semtimedop`, `msgsnd`         | changed nothing                                               |
//! | `open`, `openat` (of a FIFO)            | opened nothing                                                |
//! | `nanosleep`, `clock_nanosleep`          | slept less than it was to                                     |
//!
//! `restart_syscall` stands for a call that a stop (`SIGSTOP`, a debugger) has interrupted and the kernel has
//! begun anew. It is one of `nanosleep`, `clock_nanosleep`, `poll` and `futex`; see [`restarted`].

use crate::foreign::order::Seen;

/// One call of the table.
#[derive(Debug)]
pub(crate) struct Call {
    /// The system's number.
    number: libc::c_long,
    /// The system's name.
    pub(crate) name: &'static str,
    /// The index of the argument that is a descriptor.
    pub(crate) descriptor: Option<usize>,
    /// Which of these calls.
    kind: Kind,
}

/// See [`Call::kind`].
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// All of them.
    Any,
    /// Only under a host, which knows the code that makes the call. Rust's `std::thread::sleep` panics on an error
    /// other than `EINTR`, and event loops abort the process at such an error of `epoll_wait`.
    Hosted,
    /// `fcntl`: only the commands that wait for a lock.
    Lock,
}

/// A call whose first argument is a descriptor.
const fn of_file(number: libc::c_long, name: &'static str) -> Call {
    call(number, name, Some(0), Kind::Any)
}

/// A call without one.
const fn plain(number: libc::c_long, name: &'static str) -> Call {
    call(number, name, None, Kind::Any)
}

const fn call(
    number: libc::c_long,
    name: &'static str,
    descriptor: Option<usize>,
    kind: Kind,
) -> Call {
    Call {
        number,
        name,
        descriptor,
        kind,
    }
}

/// The table.
static CALLS: &[Call] = &[
    of_file(libc::SYS_read, "read"),
    of_file(libc::SYS_readv, "readv"),
    of_file(libc::SYS_recvfrom, "recvfrom"),
    of_file(libc::SYS_recvmsg, "recvmsg"),
    of_file(libc::SYS_recvmmsg, "recvmmsg"),
    of_file(libc::SYS_write, "write"),
    of_file(libc::SYS_writev, "writev"),
    of_file(libc::SYS_sendto, "sendto"),
    of_file(libc::SYS_sendmsg, "sendmsg"),
    of_file(libc::SYS_sendmmsg, "sendmmsg"),
    of_file(libc::SYS_sendfile, "sendfile"),
    of_file(libc::SYS_splice, "splice"),
    of_file(libc::SYS_tee, "tee"),
    of_file(libc::SYS_accept, "accept"),
    of_file(libc::SYS_accept4, "accept4"),
    of_file(libc::SYS_connect, "connect"),
    plain(libc::SYS_ppoll, "ppoll"),
    plain(libc::SYS_pselect6, "pselect6"),
    call(libc::SYS_epoll_pwait, "epoll_pwait", Some(0), Kind::Hosted),
    call(
        libc::SYS_epoll_pwait2,
        "epoll_pwait2",
        Some(0),
        Kind::Hosted,
    ),
    plain(libc::SYS_wait4, "wait4"),
    plain(libc::SYS_waitid, "waitid"),
    of_file(libc::SYS_flock, "flock"),
    call(libc::SYS_fcntl, "fcntl", Some(0), Kind::Lock),
    plain(libc::SYS_openat, "openat"),
    plain(libc::SYS_semop, "semop"),
    plain(libc::SYS_semtimedop, "semtimedop"),
    plain(libc::SYS_msgrcv, "msgrcv"),
    plain(libc::SYS_msgsnd, "msgsnd"),
    call(libc::SYS_nanosleep, "nanosleep", None, Kind::Hosted),
    call(
        libc::SYS_clock_nanosleep,
        "clock_nanosleep",
        None,
        Kind::Hosted,
    ),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_poll, "poll"),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_select, "select"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_epoll_wait, "epoll_wait", Some(0), Kind::Hosted),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_open, "open"),
];

/// A restarted call that cannot be a `futex`, by what [`restarted`] says of it.
static RESTARTED_POLL: Call = plain(libc::SYS_restart_syscall, "poll");
static RESTARTED_SLEEP: Call = call(
    libc::SYS_restart_syscall,
    "clock_nanosleep",
    None,
    Kind::Hosted,
);

/// The entry of a call that was seen, if it may be ended.
pub(crate) fn entry(seen: &Seen, has_host: bool) -> Option<&'static Call> {
    let number = libc::c_long::try_from(seen[0]).ok()?;
    let found = if number == libc::SYS_restart_syscall {
        restarted(seen)
    } else {
        CALLS.iter().find(|call| call.number == number)
    };
    found.filter(|call| match call.kind {
        Kind::Any => true,
        Kind::Hosted => has_host,
        Kind::Lock => [libc::F_SETLKW, libc::F_OFD_SETLKW]
            .iter()
            .any(|command| u64::try_from(*command).is_ok_and(|command| command == seen[2])),
    })
}

/// The name of a call, whether or not it may be ended; of one that is in no table its number.
pub(super) fn name(seen: &Seen) -> String {
    if is_futex(seen) {
        return super::FUTEX.into();
    }
    let number = libc::c_long::try_from(seen[0]).ok();
    let found = CALLS.iter().find(|call| Some(call.number) == number);
    found.map_or_else(
        || format!("system call {}", seen[0]),
        |call| call.name.into(),
    )
}

/// The descriptor that a call is about, if it is known to be about one.
pub(super) fn descriptor(seen: &Seen) -> Option<i32> {
    let number = libc::c_long::try_from(seen[0]).ok();
    let call = CALLS.iter().find(|call| Some(call.number) == number)?;
    i32::try_from(seen[1 + call.descriptor?]).ok()
}

/// True for a sleep.
pub(crate) fn is_sleep(seen: &Seen) -> bool {
    let number = libc::c_long::try_from(seen[0]);
    number == Ok(libc::SYS_clock_nanosleep) || number == Ok(libc::SYS_nanosleep)
}

/// True for a wait for a change of memory.
pub(crate) fn is_futex(seen: &Seen) -> bool {
    libc::c_long::try_from(seen[0]) == Ok(libc::SYS_futex)
}

/// Which call a `restart_syscall` is, as far as its arguments tell: the kernel shows those of the call that
/// was restarted. `None`: it may be a `futex`.
///
/// The first argument of `clock_nanosleep` is the number of a clock; that of the others is an address. The
/// second argument of a restarted `futex` is `FUTEX_WAIT` or `FUTEX_WAIT_BITSET`, with two flags; that of
/// `poll` is a count of descriptors, that of `nanosleep` an address.
fn restarted(seen: &Seen) -> Option<&'static Call> {
    /// Below it there are only numbers of clocks.
    const FIRST_ADDRESS: u64 = 4096;
    /// Above it there are only addresses.
    const MOST_DESCRIPTORS: u64 = 1 << 30;
    const FLAGS: u64 = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64;
    const WAIT: u64 = libc::FUTEX_WAIT as u64;
    const WAIT_BITSET: u64 = libc::FUTEX_WAIT_BITSET as u64;
    let (first, second) = (seen[1], seen[2]);
    if first < FIRST_ADDRESS || second > MOST_DESCRIPTORS {
        return Some(&RESTARTED_SLEEP);
    }
    let may_be_futex = matches!(second & !FLAGS, WAIT | WAIT_BITSET);
    (!may_be_futex).then_some(&RESTARTED_POLL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(number: libc::c_long, first: u64, second: u64) -> Seen {
        let number = u64::try_from(number).unwrap();
        [number, first, second, 0, 0, 0, 0, 0, 0]
    }

    fn name(seen: &Seen) -> Option<&'static str> {
        entry(seen, true).map(|call| call.name)
    }

    #[test]
    fn i46_a_futex_a_close_and_a_wait_for_signals_are_in_no_table() {
        for number in [
            libc::SYS_futex,
            libc::SYS_close,
            libc::SYS_munmap,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_rt_sigsuspend,
            libc::SYS_rt_sigprocmask,
            libc::SYS_clone,
            libc::SYS_execve,
        ] {
            assert_eq!(name(&seen(number, 0, 0)), None);
        }
    }

    #[test]
    fn numbers_and_names_are_unique() {
        for (at, call) in CALLS.iter().enumerate() {
            let others = &CALLS[at + 1..];
            assert!(others.iter().all(|other| other.number != call.number));
            assert!(others.iter().all(|other| other.name != call.name));
        }
    }

    #[test]
    fn a_fcntl_is_ended_only_if_it_waits_for_a_lock() {
        let of = |command: i32| name(&seen(libc::SYS_fcntl, 3, u64::try_from(command).unwrap()));
        assert_eq!(of(libc::F_SETLKW), Some("fcntl"));
        assert_eq!(of(libc::F_SETLK), None);
        assert_eq!(of(libc::F_GETFL), None);
    }

    #[test]
    fn i46_a_restarted_call_that_may_be_a_futex_is_left_alone() {
        let of = |first, second| name(&seen(libc::SYS_restart_syscall, first, second));
        let address = 0x7f00_0000_0000;
        assert_eq!(of(address, 0), None, "FUTEX_WAIT");
        assert_eq!(of(address, 128), None, "FUTEX_WAIT, private");
        assert_eq!(
            of(address, 0x89 | 0x100),
            None,
            "FUTEX_WAIT_BITSET, private, real time"
        );
        assert_eq!(of(address, 1), Some("poll"));
        assert_eq!(of(1, 0), Some("clock_nanosleep"));
        assert_eq!(of(address, address), Some("clock_nanosleep"));
    }

    #[test]
    fn a_sleep_is_ended_only_if_its_caller_takes_an_error() {
        let sleep = seen(libc::SYS_clock_nanosleep, 1, 0);
        assert!(entry(&sleep, false).is_none());
        assert!(entry(&sleep, true).is_some());
        assert!(entry(&seen(libc::SYS_read, 0, 0), false).is_some());
    }
}
