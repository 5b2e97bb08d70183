//! What a token takes from the allocator, its bookkeeping included.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use desist::CancelSource;
use tokio_util::sync::CancellationToken;

use crate::table::{Bench, Row, Target, Unit};

pub(crate) const BENCHES: &[Bench] = &[("memory", memory)];

const COUNT: usize = 10_000;
/// What glibc keeps in front of each block.
const CHUNK_HEADER: usize = size_of::<usize>();

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTED: AtomicUsize = AtomicUsize::new(0);
/// Off while time is measured.
static COUNTS: AtomicBool = AtomicBool::new(false);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is handed on.
        let block = unsafe { System.alloc(layout) };
        if COUNTS.load(Ordering::Relaxed) {
            // SAFETY: null, or just allocated by malloc.
            let size = unsafe { libc::malloc_usable_size(block.cast()) };
            COUNTED.fetch_add(size + CHUNK_HEADER, Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Bytes allocated, a token, while `make` makes `COUNT` of them.
fn bytes<T>(make: impl Fn() -> T) -> f64 {
    let mut tokens = Vec::with_capacity(COUNT);
    COUNTED.store(0, Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    (0..COUNT).for_each(|_| tokens.push(make()));
    COUNTS.store(false, Ordering::Relaxed);
    // Rounded: malloc hands out a somewhat larger block where the rest would be of no use.
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
