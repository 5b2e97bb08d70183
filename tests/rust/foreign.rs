//! Blocking calls of `std` and of C are ended in a cancelled scope: exactly the call that was seen, with no
//! effect, and recognised.
#![allow(unsafe_code)] // calls of C

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use desist::boundary::{BodyEnd, Boundary};
use desist::error::AsStop;
use desist::task::Task;
use desist::{
    CancelSource, CauseKind, DeadlineExceeded, Stop, cleanup, fail_after, foreign, move_on_after,
    shield,
};

/// The error of a block.
#[derive(Debug)]
enum Error {
    Stop(Stop),
    Late(DeadlineExceeded),
    #[allow(dead_code)] // shown by a test that fails
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match Stop::of_io_error(&error) {
            Some(stop) => Error::Stop(stop),
            None => Error::Io(error),
        }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Error {
        Error::Stop(stop)
    }
}

impl From<DeadlineExceeded> for Error {
    fn from(late: DeadlineExceeded) -> Error {
        Error::Late(late)
    }
}

impl AsStop for Error {
    fn stop(&self) -> Option<&Stop> {
        match self {
            Error::Stop(stop) => Some(stop),
            _ => None,
        }
    }
}

const SOON: Duration = Duration::from_millis(20);
/// Longer than any test takes, so that a call which is not ended fails it.
const LONG: Duration = Duration::from_secs(60);

fn pipe() -> (File, File) {
    let mut fds = [0; 2];
    // SAFETY: the array has two places; the descriptors are new, and owned by the files alone.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1]))
    }
}

/// A call of C, by its result.
fn c(result: impl TryInto<i64>) -> io::Result<i64> {
    match result.try_into() {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs the call in a scope whose deadline passes, on a thread of its own; it must end by that. A call that a
/// signal has interrupted is made again, as `std` does.
fn ends<T: Send + 'static>(mut call: impl FnMut() -> io::Result<T> + Send + 'static) {
    let began = Instant::now();
    let ended = thread::spawn(move || {
        fail_after(SOON, || {
            loop {
                match call() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => {
                        result?;
                        return Ok::<_, Error>(());
                    }
                }
            }
        })
    });
    let ended = ended.join().unwrap();
    assert!(matches!(ended, Err(Error::Late(_))), "{ended:?}");
    assert!(began.elapsed() >= SOON);
}

#[test]
fn this_system_can_end_calls() {
    assert_eq!(foreign::status(), Ok(()));
}

#[test]
fn i46_a_read_of_a_pipe_is_ended_at_the_deadline() {
    let (mut reader, _writer) = pipe();
    ends(move || reader.read(&mut [0; 8]));
}

#[test]
fn i46_a_write_into_a_full_pipe_is_ended_and_what_was_written_before_stays() {
    let (mut reader, mut writer) = pipe();
    let written = thread::spawn(move || {
        let mut written = 0;
        let ended = fail_after(SOON, || {
            loop {
                written += writer.write(&[7; 1000])?;
            }
            #[allow(unreachable_code)]
            Ok::<(), Error>(())
        });
        assert!(matches!(ended, Err(Error::Late(_))), "{ended:?}");
        written
    });
    let written = written.join().unwrap();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), written);
}

#[test]
fn i46_a_recv_is_ended_and_the_connection_stays_as_it_was() {
    let (mut a, mut b) = UnixStream::pair().unwrap();
    let mut theirs = a.try_clone().unwrap();
    ends(move || theirs.read(&mut [0; 8]));
    b.write_all(b"later").unwrap();
    let mut bytes = [0; 5];
    a.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"later");
}

#[test]
fn i46_a_recv_with_a_timeout_is_ended() {
    let (mut a, _b) = UnixStream::pair().unwrap();
    a.set_read_timeout(Some(LONG)).unwrap();
    ends(move || a.read(&mut [0; 8]));
}

#[test]
fn i46_an_accept_is_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ends(move || listener.accept());
}

#[test]
fn i46_a_connect_is_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // SAFETY: the descriptor is the listener's.
    unsafe { libc::listen(listener.as_raw_fd(), 0) };
    ends(move || {
        // Until the queue is full; then a connect blocks.
        let mut kept = Vec::new();
        for _ in 0..100 {
            kept.push(TcpStream::connect(address)?);
        }
        Ok(kept.len())
    });
}

#[test]
fn i46_a_send_into_a_full_buffer_is_ended() {
    let (mut a, _b) = UnixStream::pair().unwrap();
    ends(move || {
        loop {
            a.write_all(&[1; 4096])?;
        }
        #[allow(unreachable_code)]
        Ok(())
    });
}

#[test]
fn i46_the_wait_for_a_child_is_ended_and_the_child_can_be_waited_for_again() {
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let ended = move_on_after(SOON, |_| {
        child.wait()?;
        Ok::<_, Error>(())
    });
    assert!(matches!(ended, Ok(None)), "{ended:?}");
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn i46_a_flock_is_ended_and_not_taken() {
    let path = std::env::temp_dir().join(format!("desist-flock-{}", std::process::id()));
    let held = File::create(&path).unwrap();
    let wanted = File::open(&path).unwrap();
    // SAFETY: the descriptors are open.
    c(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX) }).unwrap();
    // SAFETY: as above.
    ends(move || c(unsafe { libc::flock(wanted.as_raw_fd(), libc::LOCK_EX) }));
    drop(held);
    let other = File::open(&path).unwrap();
    // SAFETY: as above.
    c(unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).unwrap();
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn i46_a_wait_for_a_record_lock_is_ended() {
    let path = std::env::temp_dir().join(format!("desist-fcntl-{}", std::process::id()));
    let held = File::create(&path).unwrap();
    let wanted = File::options().write(true).open(&path).unwrap();
    let lock = |file: &File, command| {
        // SAFETY: the structure is valid, and all zero but for the type means the whole file.
        unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = libc::F_WRLCK.try_into().unwrap();
            c(libc::fcntl(file.as_raw_fd(), command, &raw const lock))
        }
    };
    lock(&held, libc::F_OFD_SETLK).unwrap();
    ends(move || lock(&wanted, libc::F_OFD_SETLKW));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn i46_poll_and_select_are_ended() {
    let (reader, _writer) = pipe();
    let fd = reader.as_raw_fd();
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry.
    ends(move || c(unsafe { libc::poll(&raw mut entry, 1, -1) }));
    // SAFETY: as above; no time limit, no mask.
    ends(move || c(unsafe { libc::ppoll(&raw mut entry, 1, std::ptr::null(), std::ptr::null()) }));
    ends(move || {
        // SAFETY: the set is valid; the others may be null.
        c(unsafe {
            let mut set: libc::fd_set = std::mem::zeroed();
            libc::FD_SET(fd, &raw mut set);
            let none = std::ptr::null_mut();
            libc::select(fd + 1, &raw mut set, none, none, std::ptr::null_mut())
        })
    });
    drop(reader);
}

#[test]
fn i46_a_sleep_and_an_epoll_are_ended_under_a_host() {
    crate::support::watch_swallowing(); // installs the host
    ends(move || {
        // SAFETY: one place for an event.
        c(unsafe {
            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            let mut event: libc::epoll_event = std::mem::zeroed();
            libc::epoll_wait(epoll, &raw mut event, 1, -1)
        })
    });
    ends(|| {
        let time = libc::timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        // SAFETY: the remaining time is not asked for.
        match unsafe {
            libc::clock_nanosleep(
                libc::CLOCK_MONOTONIC,
                0,
                &raw const time,
                std::ptr::null_mut(),
            )
        } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    });
}

#[test]
fn i46_a_cancel_by_another_thread_ends_the_call() {
    let (mut reader, _writer) = pipe();
    let outer = CancelSource::new();
    let task = Task::new("body", Some(&outer.token()));
    let (sender, receiver) = channel();
    let body = {
        let task = task.clone();
        move || {
            let boundary = Boundary::enter(&task, None);
            sender.send(()).unwrap();
            let ended = fail_after(LONG, || Ok::<_, Error>(reader.read(&mut [0; 8])?));
            boundary.leave(BodyEnd::Unwound);
            ended
        }
    };
    let blocked = thread::spawn(body);
    receiver.recv().unwrap();
    outer.cancel_because("enough");
    let ended = blocked.join().unwrap();
    let Err(Error::Stop(Stop::Cancelled(cause))) = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(cause.reason.as_deref(), Some("enough"));
}

#[test]
fn i46_an_ended_call_outside_of_a_scope_is_no_stop() {
    let error = io::Error::from_raw_os_error(libc::ECANCELED);
    assert_eq!(Stop::of_io_error(&error), None);
    let inside = fail_after(LONG, || Ok::<_, Error>(Stop::of_io_error(&error)));
    assert!(matches!(inside, Ok(None)), "{inside:?}");
}

#[test]
fn i47_a_second_call_has_the_grace_and_is_ended_after_it() {
    let (mut reader, mut writer) = pipe();
    let source = CancelSource::new();
    let task = Task::new("body", Some(&source.token()));
    let body = {
        let task = task.clone();
        move || {
            let boundary = Boundary::enter(&task, None);
            let first = reader
                .read(&mut [0; 1])
                .map_err(|error| Stop::of_io_error(&error));
            writer.write_all(b"x").unwrap();
            let during = reader.read(&mut [0; 1]);
            let began = Instant::now();
            let second = reader
                .read(&mut [0; 1])
                .map_err(|error| Stop::of_io_error(&error));
            boundary.leave(BodyEnd::Unwound);
            (first, during, second, began.elapsed())
        }
    };
    let blocked = thread::spawn(body);
    let grace = Duration::from_millis(200);
    source.cancel_with(None, Some(grace));
    let (first, during, second, waited) = blocked.join().unwrap();
    let Err(Some(Stop::Cancelled(cause))) = first else {
        panic!("{first:?}")
    };
    assert_eq!(cause.kind, CauseKind::Explicit);
    assert_eq!(during.unwrap(), 1, "clean-up code may block");
    assert!(
        matches!(second, Err(Some(Stop::Cancelled(_)))),
        "{second:?}"
    );
    assert!(waited > grace / 2, "{waited:?}");
}

#[test]
fn i47_a_shield_and_a_clean_up_zone_hide_the_cancellation() {
    let (mut reader, mut writer) = pipe();
    let feeder = thread::spawn(move || {
        for _ in 0..3 {
            desist::sleep(SOON * 3).unwrap();
            writer.write_all(b"x").unwrap();
        }
    });
    let ended = move_on_after(SOON, |_| {
        let shielded = shield(LONG, || Ok::<_, Error>(reader.read(&mut [0; 1])?))?;
        assert_eq!(shielded, Some(1));
        let cleaned = cleanup(|| Ok::<_, Error>(reader.read(&mut [0; 1])?))?;
        assert_eq!(cleaned, Some(1));
        let ended = reader.read(&mut [0; 1]);
        assert!(Stop::of_io_error(ended.as_ref().unwrap_err()).is_some());
        ended?;
        Ok::<_, Error>(())
    });
    assert!(matches!(ended, Ok(None)), "{ended:?}");
    feeder.join().unwrap();
}

#[test]
fn i47_the_bound_of_a_shield_ends_a_call_in_it() {
    let (mut reader, _writer) = pipe();
    let ended = shield(SOON, || Ok::<_, Error>(reader.read(&mut [0; 1])?));
    assert!(matches!(ended, Ok(None)), "{ended:?}");
}

#[test]
fn i47_after_the_scope_the_thread_is_left_alone_and_the_next_scope_begins_anew() {
    let (mut reader, mut writer) = pipe();
    for _ in 0..3 {
        let ended = move_on_after(SOON, |_| Ok::<_, Error>(reader.read(&mut [0; 1])?));
        assert!(matches!(ended, Ok(None)), "{ended:?}");
        let feeder = thread::spawn(move || {
            desist::sleep(SOON * 3).unwrap();
            writer.write_all(b"x").unwrap();
            writer
        });
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 1);
        writer = feeder.join().unwrap();
    }
}

/// The signal that is in use: the real-time one that has a handler.
fn signal() -> i32 {
    assert_eq!(foreign::status(), Ok(()));
    let has_handler = |number: &i32| {
        // SAFETY: it fills the structure.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*number, std::ptr::null(), &raw mut now);
            now.sa_sigaction != libc::SIG_DFL
        }
    };
    let mut numbers = libc::SIGRTMIN()..=libc::SIGRTMAX();
    numbers.find(has_handler).expect("a signal with a handler")
}

#[test]
fn i46_a_signal_that_belongs_to_no_order_changes_nothing() {
    let signal = signal();
    let (mut reader, mut writer) = pipe();
    let (sender, receiver) = channel();
    let blocked = thread::spawn(move || {
        fail_after(LONG, || {
            // SAFETY: no arguments.
            sender
                .send(unsafe { (libc::pthread_self(), libc::gettid()) })
                .unwrap();
            Ok::<_, Error>(reader.read(&mut [0; 1])?)
        })
    });
    let (thread, tid) = receiver.recv().unwrap();
    for index in 0..64_usize {
        // SAFETY: the thread lives: it waits for the byte below. The payload is no pointer.
        unsafe {
            libc::pthread_kill(thread, signal);
            let mut info: [u64; 16] = [0; 16];
            let info = info.as_mut_ptr();
            info.cast::<i32>().write(signal);
            info.cast::<i32>().add(2).write(libc::SI_QUEUE);
            info.cast::<i32>().add(4).write(libc::getpid());
            info.add(3).write((1 << 16 | index) as u64);
            let pid = libc::getpid();
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, info);
        }
    }
    assert!(!blocked.is_finished());
    writer.write_all(b"x").unwrap();
    assert!(matches!(blocked.join().unwrap(), Ok(1)));
}

#[test]
fn i46_a_thread_that_blocks_the_signal_is_not_harmed_and_answers_later() {
    let (mut reader, mut writer) = pipe();
    let feeder = thread::spawn(move || {
        desist::sleep(SOON * 5).unwrap();
        writer.write_all(b"x").unwrap();
        writer
    });
    let set_mask = |how| {
        // SAFETY: the set is valid.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
        }
    };
    set_mask(libc::SIG_BLOCK);
    let ended = move_on_after(SOON, |_| {
        let read = reader.read(&mut [0; 1])?;
        set_mask(libc::SIG_UNBLOCK);
        assert_eq!(read, 1, "the signal is blocked");
        Ok::<_, Error>(reader.read(&mut [0; 1])?)
    });
    set_mask(libc::SIG_UNBLOCK);
    assert!(matches!(ended, Ok(None)), "{ended:?}");
    feeder.join().unwrap();
}

/// Runs a test that is ignored, in a process of its own.
fn run_alone(name: &str) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored"])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && output.contains("1 passed"),
        "{output}"
    );
}

#[test]
fn i46_where_other_code_has_taken_the_signal_nothing_is_sent() {
    run_alone("foreign::alone_where_other_code_has_taken_the_signal");
}

#[test]
#[ignore = "changes the signal's handler: run by the test above, in a process of its own"]
fn alone_where_other_code_has_taken_the_signal() {
    extern "C" fn theirs(_number: i32) {
        std::process::abort();
    }
    let number = signal();
    // SAFETY: a valid handler.
    unsafe { libc::signal(number, theirs as extern "C" fn(i32) as libc::sighandler_t) };
    let taken = foreign::Unavailable::SignalTaken(number);
    assert_eq!(foreign::status(), Err(taken));
    assert!(taken.to_string().contains(&number.to_string()));
    let (mut reader, mut writer) = pipe();
    let feeder = thread::spawn(move || {
        desist::sleep(SOON * 5).unwrap();
        writer.write_all(b"x").unwrap();
    });
    let read = fail_after(SOON, || Ok::<_, Error>(reader.read(&mut [0; 1])?));
    assert!(matches!(read, Ok(1)), "{read:?}");
    feeder.join().unwrap();
    assert_eq!(foreign::ended_calls(), 0);
}
