//! Random cancels of blocking calls, under load: a call is reported as ended if and only if it was, every byte
//! arrives once, and nothing is ended outside of a cancelled scope.
#![allow(unsafe_code)] // calls of C

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use desist::boundary::{BodyEnd, Boundary};
use desist::error::AsStop;
use desist::task::Task;
use desist::{CancelSource, DeadlineExceeded, Stop, cleanup, fail_after, foreign};

/// The error of a block.
#[derive(Debug)]
enum Error {
    Stop(Stop),
    Late,
}

impl AsStop for Error {
    fn stop(&self) -> Option<&Stop> {
        match self {
            Error::Stop(stop) => Some(stop),
            Error::Late => None,
        }
    }
}

impl From<DeadlineExceeded> for Error {
    fn from(_: DeadlineExceeded) -> Error {
        Error::Late
    }
}

/// A generator of numbers that needs no crate.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What all threads have counted.
#[derive(Default)]
struct Counts {
    over: AtomicBool,
    rounds: AtomicU64,
    ended: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// A result of a call: `None` for one that was ended, or interrupted.
fn result<T>(call: io::Result<T>, counts: &Counts) -> Result<Option<T>, Error> {
    let error = match call {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    match (error.raw_os_error(), Stop::of_io_error(&error)) {
        (Some(libc::ECANCELED), Some(stop)) => {
            counts.ended.fetch_add(1, Ordering::Relaxed);
            Err(Error::Stop(stop))
        }
        (Some(libc::EINTR | libc::EAGAIN), None) => Ok(None),
        other => panic!("an error that no call has: {other:?}"),
    }
}

/// One blocking call of several kinds.
fn call(stream: &mut UnixStream, random: &mut Random, counts: &Counts) -> Result<(), Error> {
    match random.below(5) {
        0 | 1 => {
            let mut bytes = [0; 64];
            let read = result(stream.read(&mut bytes), counts)?.unwrap_or(0);
            counts.received.fetch_add(read as u64, Ordering::Relaxed);
        }
        2 => {
            let mut entry = libc::pollfd {
                fd: stream.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one entry.
            let polled = match unsafe { libc::poll(&raw mut entry, 1, 2) } {
                -1 => Err(io::Error::last_os_error()),
                ready => Ok(ready),
            };
            result(polled, counts)?;
        }
        3 => {
            // Code that holds the allocator's lock.
            for _ in 0..20 {
                let size = usize::try_from(random.below(200_000)).unwrap();
                std::hint::black_box(vec![1_u8; size]);
            }
        }
        _ => {
            let command = Command::new("true").stdin(Stdio::null()).spawn();
            let mut child = command.unwrap();
            let waited = result(child.wait(), counts);
            if waited.is_err() {
                child.wait().unwrap(); // not reaped by the call that was ended
            }
            waited?;
        }
    }
    Ok(())
}

/// A thread that is cancelled again and again, by deadlines and by a source.
fn victim(mut stream: UnixStream, mut random: Random, counts: &Counts) {
    while !counts.over.load(Ordering::Relaxed) {
        counts.rounds.fetch_add(1, Ordering::Relaxed);
        let timeout = Duration::from_micros(random.below(3000));
        let ended = fail_after(timeout, || {
            loop {
                call(&mut stream, &mut random, counts)?;
            }
            #[allow(unreachable_code)]
            Ok::<(), Error>(())
        });
        assert!(matches!(ended, Err(Error::Late)), "{ended:?}");
        // Outside nothing is ended: an error other than of a time limit fails the test.
        let outside = call(&mut stream, &mut random, counts);
        assert!(outside.is_ok(), "{outside:?}");
        let cleaned = cleanup(|| call(&mut stream, &mut random, counts));
        assert!(matches!(cleaned, Ok(Some(()))), "{cleaned:?}");
    }
}

/// A thread that runs one task after another, each cancelled by this one's parent at a random instant.
fn tasks(mut stream: UnixStream, mut random: Random, counts: &Arc<Counts>) {
    while !counts.over.load(Ordering::Relaxed) {
        counts.rounds.fetch_add(1, Ordering::Relaxed);
        let source = CancelSource::new();
        let task = Task::new("body", Some(&source.token()));
        let wait = random.below(2000);
        let canceller = thread::spawn(move || {
            let began = Instant::now();
            while began.elapsed() < Duration::from_micros(wait) {
                thread::yield_now();
            }
            source.cancel();
        });
        let boundary = Boundary::enter(&task, None);
        let stop = loop {
            if let Err(stop) = call(&mut stream, &mut random, counts) {
                break stop;
            }
        };
        boundary.leave(BodyEnd::Unwound);
        assert!(matches!(stop, Error::Stop(Stop::Cancelled(_))), "{stop:?}");
        canceller.join().unwrap();
    }
}

/// Seconds to run, by the environment.
fn seconds() -> u64 {
    let given = std::env::var("DESIST_SOAK").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(20)
}

#[test]
#[ignore = "takes DESIST_SOAK seconds (20), and signals the whole process: run it alone"]
fn i46_i47_random_cancels_lose_no_byte_and_end_nothing_outside() {
    extern "C" fn nothing(_number: i32) {}
    // Other signals in between: one that restarts calls, one that does not.
    for (number, flags) in [(libc::SIGALRM, 0), (libc::SIGCHLD, libc::SA_RESTART)] {
        // SAFETY: a valid handler, and all zero is a valid structure.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(i32) as libc::sighandler_t;
            action.sa_flags = flags;
            libc::sigaction(number, &raw const action, std::ptr::null_mut());
            let time = libc::timeval {
                tv_sec: 0,
                tv_usec: 1500,
            };
            let timer = libc::itimerval {
                it_interval: time,
                it_value: time,
            };
            libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
        }
    }
    let counts = Arc::new(Counts::default());
    let ended_before = foreign::ended_calls();
    let mut threads = Vec::new();
    let mut ends = Vec::new();
    for seed in 1..=6 {
        let (theirs, ours) = UnixStream::pair().unwrap();
        theirs
            .set_read_timeout((seed % 2 == 0).then_some(Duration::from_millis(20)))
            .unwrap();
        let mut writer = ours.try_clone().unwrap();
        ends.push((theirs.try_clone().unwrap(), ours));
        let counts = counts.clone();
        let feeding = counts.clone();
        let mut random = Random(seed * 7919);
        threads.push(thread::spawn(move || {
            while !feeding.over.load(Ordering::Relaxed) {
                // The wait of a poll without descriptors, which nothing ends here: no scope.
                let pause = i32::try_from(random.below(3)).unwrap();
                // SAFETY: no entries.
                unsafe { libc::poll(std::ptr::null_mut(), 0, pause) };
                let sent = writer.write(&[5; 3]).unwrap_or(0);
                feeding.sent.fetch_add(sent as u64, Ordering::Relaxed);
            }
        }));
        threads.push(thread::spawn(move || {
            let random = Random(seed * 104_729);
            if seed % 3 == 0 {
                tasks(theirs, random, &counts);
            } else {
                victim(theirs, random, &counts);
            }
        }));
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds()) {
        // Threads that end in a scope with a deadline.
        let short = thread::spawn(|| fail_after(Duration::from_micros(50), || Ok::<_, Error>(())));
        short.join().unwrap().unwrap();
        thread::yield_now();
    }
    counts.over.store(true, Ordering::Relaxed);
    // What is still read ends by these bytes, if its scope has no deadline.
    for (_, ours) in &mut ends {
        ours.write_all(&[5; 3]).unwrap();
        counts.sent.fetch_add(3, Ordering::Relaxed);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    for (theirs, ours) in &mut ends {
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        counts
            .received
            .fetch_add(rest.len() as u64, Ordering::Relaxed);
    }
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let ended = foreign::ended_calls() - ended_before;
    println!(
        "{} rounds, {ended} calls ended, {} bytes",
        get(&counts.rounds),
        get(&counts.received)
    );
    assert_eq!(get(&counts.ended), ended, "raised if and only if ended");
    assert_eq!(get(&counts.sent), get(&counts.received), "every byte once");
}
