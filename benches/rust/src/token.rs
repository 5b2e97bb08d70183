//! The cost of a token: to check, to make, to cancel, to register a callback.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::thread;

use desist::CancelSource;
use tokio_util::sync::CancellationToken;

use crate::measure::{each, medians, once};
use crate::table::{Bench, Row, Target, Unit};

pub(crate) const BENCHES: &[Bench] = &[
    ("check", check),
    ("new + drop", new_and_drop),
    ("child + drop", child_and_drop),
    ("child + drop, two threads", child_and_drop_on_two_threads),
    ("cancel of 100,000 children", || {
        cancel_children("cancel of 100,000 children, a child", 100_000, 41)
    }),
    ("cancel of 1,000,000 children", || {
        cancel_children("cancel of 1,000,000 children, a child", 1_000_000, 7)
    }),
    ("cancel of a chain", chain),
    ("callback", callback),
];

const ROUNDS: usize = 201;
const SMALL: usize = 5_000;

fn row(subject: &'static str, floor: Option<f64>, tokio: f64, desist: f64, target: Target) -> Row {
    Row {
        subject,
        unit: Unit::Nanos,
        floor,
        tokio: Some(tokio),
        desist,
        target,
    }
}

/// Checks for each turn of the loop: a check is so short that the loop itself would distort the figure.
const UNROLLED: usize = 16;

/// Nanoseconds of a check.
fn look(turns: usize, look: impl Fn() -> bool) -> f64 {
    let work = || (0..UNROLLED).for_each(|_| assert!(!look()));
    each(turns, work) / UNROLLED as f64
}

fn check() -> Vec<Row> {
    const TURNS: usize = 10_000;
    let flag = Arc::new(AtomicBool::new(false));
    let peer = CancellationToken::new();
    let source = CancelSource::new();
    let token = source.token();
    let [floor, tokio, desist] = medians(
        ROUNDS,
        [
            &mut || look(TURNS, || black_box(&flag).load(Ordering::Acquire)),
            &mut || look(TURNS / 20, || black_box(&peer).is_cancelled()),
            &mut || look(TURNS, || black_box(&token).is_cancelled()),
        ],
    );
    vec![row(
        "check (floor: an AtomicBool in an Arc)",
        Some(floor),
        tokio,
        desist,
        Target::OfFloor(1.2),
    )]
}

fn new_and_drop() -> Vec<Row> {
    let [floor, tokio, desist] = medians(
        ROUNDS,
        [
            &mut || each(SMALL, || drop(black_box(Box::new([0_u64; 9])))),
            &mut || each(SMALL, || drop(black_box(CancellationToken::new()))),
            &mut || each(SMALL, || drop(black_box(CancelSource::new()))),
        ],
    );
    vec![row(
        "new + drop (floor: a Box of that size)",
        Some(floor),
        tokio,
        desist,
        Target::Quicker(3.0),
    )]
}

fn child_and_drop() -> Vec<Row> {
    let peer = CancellationToken::new();
    let source = CancelSource::new();
    let token = source.token();
    let [tokio, desist] = medians(
        ROUNDS,
        [
            &mut || each(SMALL, || drop(black_box(peer.child_token()))),
            &mut || each(SMALL, || drop(black_box(token.child()))),
        ],
    );
    vec![row(
        "child + drop",
        None,
        tokio,
        desist,
        Target::Quicker(2.0),
    )]
}

fn child_and_drop_on_two_threads() -> Vec<Row> {
    let peer = CancellationToken::new();
    let source = CancelSource::new();
    let token = source.token();
    let [tokio, desist] = medians(
        ROUNDS,
        [
            &mut || on_two_threads(|| drop(black_box(peer.child_token()))),
            &mut || on_two_threads(|| drop(black_box(token.child()))),
        ],
    );
    vec![row(
        "child + drop, two threads on one parent",
        None,
        tokio,
        desist,
        Target::None,
    )]
}

/// Nanoseconds for one run of `work` while another thread runs it as well.
fn on_two_threads(work: impl Fn() + Sync) -> f64 {
    let ready = AtomicU32::new(0);
    let run = || {
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < 2 {
            std::hint::spin_loop();
        }
        each(SMALL, &work)
    };
    thread::scope(|scope| {
        let other = scope.spawn(run);
        let this = run();
        (this + other.join().expect("the bench's own thread")) / 2.0
    })
}

fn cancel_children(subject: &'static str, count: usize, rounds: usize) -> Vec<Row> {
    let [tokio, desist] = medians(
        rounds,
        [
            &mut || {
                let root = CancellationToken::new();
                let children: Vec<_> = (0..count).map(|_| root.child_token()).collect();
                let figure = once(count, || root.cancel());
                assert!(children.iter().all(CancellationToken::is_cancelled));
                figure
            },
            &mut || {
                let root = CancelSource::new();
                let children: Vec<_> = (0..count).map(|_| root.token().child()).collect();
                let figure = once(count, || assert!(root.cancel()));
                assert!(children.iter().all(|child| child.token().is_cancelled()));
                figure
            },
        ],
    );
    vec![row(subject, None, tokio, desist, Target::Quicker(6.0))]
}

/// The handle of every node is kept, because tokio-util drops a node without one.
fn chain() -> Vec<Row> {
    const DEPTH: usize = 100_000;
    let peers = || {
        let mut chain = vec![CancellationToken::new()];
        (1..DEPTH).for_each(|at| chain.push(chain[at - 1].child_token()));
        chain
    };
    let sources = || {
        let mut chain = vec![CancelSource::new()];
        (1..DEPTH).for_each(|at| chain.push(chain[at - 1].token().child()));
        chain
    };
    let [tokio, desist] = medians(
        21,
        [
            &mut || {
                let chain = peers();
                let figure = once(DEPTH, || chain[0].cancel());
                assert!(chain[DEPTH - 1].is_cancelled());
                figure
            },
            &mut || {
                let chain = sources();
                let figure = once(DEPTH, || assert!(chain[0].cancel()));
                assert!(chain[DEPTH - 1].token().is_cancelled());
                figure
            },
        ],
    );
    let cancelled = row(
        "cancel of a chain of 100,000, a node",
        None,
        tokio,
        desist,
        Target::Quicker(2.0),
    );
    let [tokio, desist] = medians(
        21,
        [
            &mut || {
                let chain = peers();
                once(DEPTH, || drop(chain))
            },
            &mut || {
                let chain = sources();
                once(DEPTH, || drop(chain))
            },
        ],
    );
    vec![
        cancelled,
        row(
            "drop of a chain of 100,000, a node",
            None,
            tokio,
            desist,
            Target::Quicker(2.0),
        ),
    ]
}

/// tokio-util has no callbacks; the nearest is a future that is polled once and dropped.
fn callback() -> Vec<Row> {
    let peer = CancellationToken::new();
    let source = CancelSource::new();
    let token = source.token();
    let mut context = Context::from_waker(Waker::noop());
    let [tokio, desist] = medians(
        ROUNDS,
        [
            &mut || {
                each(SMALL, || {
                    assert!(pin!(peer.cancelled()).poll(&mut context).is_pending())
                })
            },
            &mut || each(SMALL, || drop(black_box(token.on_cancel(|_| ())))),
        ],
    );
    vec![row(
        "callback: register + drop",
        None,
        tokio,
        desist,
        Target::None,
    )]
}
