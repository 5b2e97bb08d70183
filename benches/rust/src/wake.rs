//! The latency of a blocked thread: after a cancel by another thread, and after a deadline.
#![allow(unsafe_code)] // a bare futex is the floor

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use desist::{CancelSource, CancelToken, Stop, Time};
use tokio_util::sync::CancellationToken;

use crate::measure::{nanos, quantile};
use crate::table::{Bench, Row, Target, Unit};

pub(crate) const BENCHES: &[Bench] = &[("wake", wake), ("deadline", deadline)];

const HAND_OVERS: usize = 4_000;
const DEADLINES: usize = 4_000;
/// A quantile is the median of those of the batches, so that one bad moment does not decide.
const BATCHES: usize = 10;
/// The time after which a thread that is about to wait is asleep.
const FALLS_ASLEEP: Duration = Duration::from_micros(60);

/// One hand-over: a thread blocks in `wait`, and `wake` of another thread ends that.
trait HandOver: Send + Sync {
    fn wait(&self);
    fn wake(&self);
}

#[derive(Default)]
struct Futex(AtomicU32);

impl HandOver for Futex {
    fn wait(&self) {
        while self.0.load(Ordering::Acquire) == 0 {
            // SAFETY: the word outlives the call; without a timeout nothing else is read.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.0.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    0,
                    std::ptr::null::<libc::timespec>(),
                );
            }
        }
    }

    fn wake(&self) {
        self.0.store(1, Ordering::Release);
        // SAFETY: a wake uses only the address of the word.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.0.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                1,
            );
        }
    }
}

#[derive(Default)]
struct Std(Mutex<bool>, Condvar);

impl HandOver for Std {
    fn wait(&self) {
        let go = self.0.lock().expect("never poisoned");
        drop(self.1.wait_while(go, |go| !*go).expect("never poisoned"));
    }

    fn wake(&self) {
        *self.0.lock().expect("never poisoned") = true;
        self.1.notify_one();
    }
}

/// The canceller's source and the waiter's token.
struct Desist(CancelSource, CancelToken);

impl Default for Desist {
    fn default() -> Desist {
        let source = CancelSource::new();
        let token = source.token();
        Desist(source, token)
    }
}

impl HandOver for Desist {
    fn wait(&self) {
        assert_eq!(self.1.wait_until(Time::NEVER), Ok(true));
    }

    fn wake(&self) {
        self.0.cancel();
    }
}

impl HandOver for CancellationToken {
    fn wait(&self) {
        block_on(self.cancelled());
    }

    fn wake(&self) {
        self.cancel();
    }
}

/// A current-thread runtime: a future that is ready after one wake-up.
fn block_on(future: impl Future) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("no driver that could fail");
    }
    RUNTIME.with(|runtime| runtime.block_on(future));
}

fn wake() -> Vec<Row> {
    let mut late = [const { Vec::new() }; 4];
    let waiter = Waiter::start();
    for round in 0..HAND_OVERS {
        let sides: [Arc<dyn HandOver>; 4] = [
            Arc::new(Futex::default()),
            Arc::new(Std::default()),
            Arc::new(CancellationToken::new()),
            Arc::new(Desist::default()),
        ];
        for turn in 0..sides.len() {
            let side = (round + turn) % sides.len();
            late[side].push(waiter.hand_over(&sides[side]));
        }
    }
    let quantiles = |part| late.each_ref().map(|late| of_batches(late, part));
    let row = |subject, floor, tokio, desist| Row {
        subject,
        unit: Unit::Micros,
        floor: Some(floor),
        tokio: Some(tokio),
        desist,
        target: Target::OfFloor(1.1),
    };
    let [futex, condvar, tokio, desist] = quantiles(0.5);
    let [futex_tail, condvar_tail, tokio_tail, desist_tail] = quantiles(0.99);
    vec![
        row(
            "wake: cancel to waiter p50 (floor: futex)",
            futex,
            tokio,
            desist,
        ),
        row(
            "wake: cancel to waiter p99 (floor: futex)",
            futex_tail,
            tokio_tail,
            desist_tail,
        ),
        row(
            "wake: cancel to waiter p50 (floor: Condvar)",
            condvar,
            tokio,
            desist,
        ),
        row(
            "wake: cancel to waiter p99 (floor: Condvar)",
            condvar_tail,
            tokio_tail,
            desist_tail,
        ),
    ]
}

/// The thread that blocks, one for all hand-overs.
struct Waiter {
    work: Sender<Arc<dyn HandOver>>,
    woken: Receiver<Instant>,
    about_to_wait: Arc<AtomicBool>,
}

impl Waiter {
    fn start() -> Waiter {
        let (work, to_do) = channel::<Arc<dyn HandOver>>();
        let (report, woken) = channel();
        let about_to_wait = Arc::new(AtomicBool::new(false));
        let about = about_to_wait.clone();
        thread::spawn(move || {
            for side in to_do {
                about.store(true, Ordering::Release);
                side.wait();
                let _ = report.send(Instant::now());
            }
        });
        Waiter {
            work,
            woken,
            about_to_wait,
        }
    }

    /// Nanoseconds from just before `wake` until the waiter runs.
    fn hand_over(&self, side: &Arc<dyn HandOver>) -> f64 {
        self.work
            .send(side.clone())
            .expect("the waiter's thread runs");
        while !self.about_to_wait.swap(false, Ordering::AcqRel) {
            std::hint::spin_loop();
        }
        let about = Instant::now();
        while about.elapsed() < FALLS_ASLEEP {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        side.wake();
        let woken = self.woken.recv().expect("the waiter's thread runs");
        woken.duration_since(start).as_nanos() as f64
    }
}

fn of_batches(late: &[f64], part: f64) -> f64 {
    let mut quantiles: Vec<f64> = late
        .chunks(late.len() / BATCHES)
        .map(|batch| quantile(&mut batch.to_vec(), part))
        .collect();
    quantile(&mut quantiles, 0.5)
}

fn deadline() -> Vec<Row> {
    const DELAY: Duration = Duration::from_micros(500);
    let mut late = [const { Vec::new() }; 2];
    for _ in 0..DEADLINES {
        let start = Instant::now();
        #[expect(clippy::disallowed_methods, reason = "it is the floor")]
        thread::sleep(DELAY);
        late[0].push(nanos(start) - DELAY.as_nanos() as f64);

        let start = Instant::now();
        let left = desist::move_on_after(DELAY, |_| desist::sleep(Duration::from_secs(60)));
        late[1].push(nanos(start) - DELAY.as_nanos() as f64);
        assert_eq!(left, Ok::<_, Stop>(None));
    }
    let row = |subject, part| {
        let [floor, desist] = late.each_ref().map(|late| of_batches(late, part));
        Row {
            subject,
            unit: Unit::Micros,
            floor: Some(floor),
            tokio: None,
            desist,
            target: Target::OfFloor(1.05), // as fast, and a twentieth for noise
        }
    };
    vec![
        row("deadline: lateness p50 (floor: thread::sleep)", 0.5),
        row("deadline: lateness p99 (floor: thread::sleep)", 0.99),
    ]
}
