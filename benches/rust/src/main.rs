//! desist against tokio-util's `CancellationToken`, against crossbeam's channel and against the floor
//! that the machine sets, all in one run.
//!
//! `cargo run --release --manifest-path benches/rust/Cargo.toml [-- FILTER...]`, on Linux. A
//! filter picks the rows whose subject contains it. The exit status is 0 whatever the figures are.

mod jobs;
mod measure;
mod memory;
mod stall;
mod table;
mod timer;
mod token;
mod wake;

use table::{Bench, Row};

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |subject: &str| {
        filters.is_empty() || filters.iter().any(|part| subject.contains(part.as_str()))
    };
    let benches: Vec<Bench> = [
        token::BENCHES,
        stall::BENCHES,
        memory::BENCHES,
        wake::BENCHES,
        timer::BENCHES,
        jobs::BENCHES,
    ]
    .concat();

    table::print_header();
    for (subject, bench) in benches {
        if wanted(subject) {
            bench().iter().for_each(Row::print);
        }
    }
}
