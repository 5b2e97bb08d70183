//! How long a check of a token stalls while another thread cancels 100,000 tokens below it.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use desist::CancelSource;
use tokio_util::sync::CancellationToken;

use crate::measure::{nanos, quantile};
use crate::table::{Bench, Row, Target, Unit};

pub(crate) const BENCHES: &[Bench] = &[("stall", stall)];

const CHILDREN: usize = 100_000;
const ROUNDS: usize = 41;

fn stall() -> Vec<Row> {
    let mut worst = [const { Vec::new() }; 3];
    let mut usual = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let flag = AtomicBool::new(false);
        // The floor runs for as long as a cancel does, with no other thread at work.
        let floor = while_other_works(
            || black_box(&flag).load(Ordering::Acquire),
            || {
                let start = Instant::now();
                while nanos(start) < 1e6 {}
            },
        );

        let root = CancellationToken::new();
        let children: Vec<_> = (0..CHILDREN).map(|_| root.child_token()).collect();
        let tokio = while_other_works(|| black_box(&root).is_cancelled(), || root.cancel());
        drop(children);

        let root = CancelSource::new();
        let token = root.token();
        let children: Vec<_> = (0..CHILDREN).map(|_| token.child()).collect();
        let desist = while_other_works(
            || black_box(&token).is_cancelled(),
            || assert!(root.cancel()),
        );
        drop(children);

        for (side, mut looks) in [floor, tokio, desist].into_iter().enumerate() {
            usual[side].push(quantile(&mut looks, 0.5));
            worst[side].push(quantile(&mut looks, 1.0));
        }
    }
    let row = |subject, figures: [Vec<f64>; 3]| {
        let [floor, tokio, desist] = figures.map(|mut figures| quantile(&mut figures, 0.5));
        Row {
            subject,
            unit: Unit::Nanos,
            floor: Some(floor),
            tokio: Some(tokio),
            desist,
            target: Target::AtMost(1_000.0),
        }
    };
    vec![
        row("stall of a check during a cancel: median", usual),
        row("stall of a check during a cancel: worst", worst),
    ]
}

/// The duration of each `look`, with the cost of the clock, while another thread does `work`.
fn while_other_works(look: impl Fn() -> bool, work: impl FnOnce() + Send) -> Vec<f64> {
    // Neither thread begins before the other runs.
    let (start, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let mut looks = Vec::with_capacity(1 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            meet(&start);
            work();
            over.store(true, Ordering::Release);
        });
        meet(&start);
        loop {
            let start = Instant::now();
            black_box(look());
            looks.push(nanos(start));
            if over.load(Ordering::Acquire) || looks.len() == looks.capacity() {
                return;
            }
        }
    });
    looks
}

/// Wait, without sleeping, until both threads are here: a thread that is woken would be late.
fn meet(here: &AtomicU32) {
    here.fetch_add(1, Ordering::AcqRel);
    while here.load(Ordering::Acquire) < 2 {
        std::hint::spin_loop();
    }
}
