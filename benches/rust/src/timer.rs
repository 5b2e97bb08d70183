//! 100,000 deadlines without a waiter: armed in the timer, and disarmed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use desist::{CancelSource, Time};

use crate::measure::{medians, once};
use crate::table::{Bench, Row, Target, Unit};

pub(crate) const BENCHES: &[Bench] = &[("timers", timers)];

const COUNT: usize = 100_000;

/// Delays of one to two minutes, in random order: none passes during the measurement.
fn delays() -> impl Iterator<Item = Duration> {
    (0..COUNT as u64).map(|at| Duration::from_millis(60_000 + at * 7_919 % 60_000))
}

fn timers() -> Vec<Row> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("nothing to fail");
    let _inside = runtime.enter();
    let mut context = Context::from_waker(Waker::noop());
    let mut tokio = |figure: fn(f64, f64) -> f64| {
        let mut sleeps = Vec::with_capacity(COUNT);
        let armed = once(COUNT, || {
            for delay in delays() {
                let mut sleep: Pin<Box<_>> = Box::pin(tokio::time::sleep(delay));
                assert!(sleep.as_mut().poll(&mut context).is_pending()); // registers
                sleeps.push(sleep);
            }
        });
        figure(armed, once(COUNT, || drop(sleeps)))
    };
    let desist = |figure: fn(f64, f64) -> f64| {
        let mut sources = Vec::with_capacity(COUNT);
        let armed = once(COUNT, || {
            for delay in delays() {
                sources.push(CancelSource::with_deadline(Time::after(delay)));
            }
        });
        figure(armed, once(COUNT, || drop(sources)))
    };
    let mut row = |subject, figure| {
        let [tokio, desist] = medians(11, [&mut || tokio(figure), &mut || desist(figure)]);
        Row {
            subject,
            unit: Unit::Nanos,
            floor: None,
            tokio: Some(tokio),
            desist,
            target: Target::None,
        }
    };
    vec![
        row("100,000 timers: arm one", |armed, _| armed),
        row("100,000 timers: take one back", |_, dropped| dropped),
    ]
}
