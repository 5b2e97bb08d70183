//! How a figure is measured: the sides take turns in many rounds, and the median of each side's rounds
//! counts, so that other load on the machine affects all of them alike. The work of a single thread is
//! measured in that thread's CPU time, which other load hardly changes.
#![allow(unsafe_code)] // one system call: std cannot read the CPU time

use std::time::Instant;

/// One side of a comparison: it runs a round and returns its figure.
pub(crate) type Side<'a> = &'a mut dyn FnMut() -> f64;

/// The median of each side over `rounds`. The side that goes first changes from round to round.
pub(crate) fn medians<const N: usize>(rounds: usize, mut sides: [Side<'_>; N]) -> [f64; N] {
    let mut figures = [const { Vec::new() }; N];
    for side in &mut sides {
        side(); // warms caches and the allocator
    }
    for round in 0..rounds {
        for turn in 0..N {
            let side = (round + turn) % N;
            figures[side].push(sides[side]());
        }
    }
    figures.map(|mut figures| quantile(&mut figures, 0.5))
}

/// The figure below which this part of the figures lies.
pub(crate) fn quantile(figures: &mut [f64], part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[((figures.len() - 1) as f64 * part).round() as usize]
}

/// Nanoseconds of one of `count` runs of `work`.
pub(crate) fn each(count: usize, mut work: impl FnMut()) -> f64 {
    once(count, || (0..count).for_each(|_| work()))
}

/// Nanoseconds of one thing of `work`, which does `count` of them.
pub(crate) fn once(count: usize, work: impl FnOnce()) -> f64 {
    let start = cpu_nanos();
    work();
    (cpu_nanos() - start) / count as f64
}

/// CPU time of the calling thread.
fn cpu_nanos() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place to write to, and the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Nanoseconds since `start`.
pub(crate) fn nanos(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64
}
