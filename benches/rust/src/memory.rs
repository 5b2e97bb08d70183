//! The memory of a token, with the allocator's own overhead.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use desist::CancelSource;
use tokio_util::sync::CancellationToken;

use crate::table::{Bench, Row, Target, Unit};

pub(crate) const BENCHES: &[Bench] = &[("memory", memory)];

const COUNT: usize = 10_000;
/// The header that glibc has in front of each block.
const CHUNK_HEADER: usize = size_of::<usize>();

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTED: AtomicUsize = AtomicUsize::new(0);
/// Off while time is measured.
static COUNTS: AtomicBool = AtomicBool::new(false);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc`, and it is passed on.
        let block = unsafe { System.alloc(layout) };
        if COUNTS.load(Ordering::Relaxed) {
            // SAFETY: the pointer is null, or was just allocated by malloc.
            let size = unsafe { libc::malloc_usable_size(block.cast()) };
            COUNTED.fetch_add(size + CHUNK_HEADER, Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `GlobalAlloc`, and it is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Bytes allocated for each token while `make` makes `COUNT` of them.
fn bytes<T>(make: impl Fn() -> T) -> f64 {
    let mut tokens = Vec::with_capacity(COUNT);
    COUNTED.store(0, Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    (0..COUNT).for_each(|_| tokens.push(make()));
    COUNTS.store(false, Ordering::Relaxed);
    // Rounded: malloc returns a slightly larger block where the rest of it would be too small to use.
    (COUNTED.load(Ordering::Relaxed) as f64 / COUNT as f64).round()
}

fn memory() -> Vec<Row> {
    let peer = CancellationToken::new();
    let source = CancelSource::new();
    let row = |subject, tokio, desist| Row {
        subject,
        unit: Unit::Bytes,
        floor: None,
        tokio: Some(tokio),
        desist,
        target: Target::AtMost(80.0),
    };
    vec![
        row(
            "memory of a token, malloc included",
            bytes(CancellationToken::new),
            bytes(CancelSource::new),
        ),
        row(
            "memory of a child",
            bytes(|| peer.child_token()),
            bytes(|| source.token().child()),
        ),
    ]
}
