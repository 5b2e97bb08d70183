//! The threads that CPython ends when it is finalized, while frames of this library are on their stacks.
//!
//! Guarantees: no such thread aborts the process. It sleeps until the process ends, as every such thread
//! does in CPython from 3.14 on, and nothing on its stack is dropped. This holds for all Python code that
//! a native method, a conversion of its arguments or a drop of a Python object runs. No caller does
//! anything for it.
//!
//! How: up to 3.13, a daemon thread that comes back to the interpreter after its finalization has begun
//! is ended by `pthread_exit`, and glibc unwinds the stack of the thread ("forced unwinding"). For each
//! frame the unwinder calls the personality routine of the frame. That of Rust aborts the process, in a
//! frame that called a function that does not unwind, and in one that catches panics. All frames of one
//! shared library find the routine through one variable of that library, `DW.ref.rust_eh_personality`.
//! [`install`] points this variable to [`personality`], which parks the thread when the unwinding is
//! forced and the interpreter is finalized, and hands everything else, above all panics, to the routine
//! of Rust. Nothing is changed outside this library, and no call costs more than before.
//!
//! The variable is written once, at import, with the interpreter's lock held. A thread that panics
//! meanwhile reads the one or the other routine, which do the same for a panic.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | a thread that wants the interpreter while it is finalized is ended by `pthread_exit` | 3.10-3.13 | `test_i44_no_python_code_of_a_daemon_thread_aborts_the_process` |
//! | such a thread sleeps for ever | 3.14, 3.15 | the same |
//! | in position-independent code for ELF, LLVM makes frames refer to their personality routine through that variable, which is writable | Rust 1.85 and later | the same |
//! | `Py_IsInitialized` is false from an instant after the first thread may be ended so | 3.10-3.13 | the same |
//!
//! Other C libraries than glibc end a thread without unwinding its stack, and need none of this.
#![allow(unsafe_code)] // the unwinder's ABI

use pyo3::Python;

/// Make the end of a thread by the interpreter harmless, for all frames of this library.
pub(in crate::python) fn install(py: Python<'_>) {
    if py.version_info() < (3, 14) {
        redirect();
    }
}

// 32-bit ARM has unwinding tables of its own; without unwinding panics there is no routine.
#[cfg(not(all(
    target_os = "linux",
    target_env = "gnu",
    panic = "unwind",
    not(target_arch = "arm")
)))]
fn redirect() {}

#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    panic = "unwind",
    not(target_arch = "arm")
))]
use glibc::redirect;

#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    panic = "unwind",
    not(target_arch = "arm")
))]
mod glibc {
    use std::ffi::{c_int, c_void};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicPtr, Ordering};
    use std::thread;
    use std::time::Duration;

    use pyo3::ffi;

    /// A personality routine, as the unwinder calls it: version of the ABI, actions, class of the
    /// exception, the exception, and the frame.
    type Personality = unsafe extern "C" fn(c_int, c_int, u64, *mut c_void, *mut c_void) -> c_int;

    /// `_UA_FORCE_UNWIND` among the actions: nothing may catch the exception.
    const FORCED: c_int = 8;

    unsafe extern "C" {
        /// Through it every frame of this library refers to its personality routine.
        #[link_name = "DW.ref.rust_eh_personality"]
        static REFERENCE: AtomicPtr<c_void>;
    }

    /// The routine of Rust. Written once, before [`personality`] can be called.
    static OF_RUST: OnceLock<Personality> = OnceLock::new();

    pub(super) fn redirect() {
        // SAFETY: the compiler defines the variable in every library that has a frame with clean-up; it
        // is of the size and alignment of a pointer, in a writable section, and has no other writer.
        let reference = unsafe { &REFERENCE };
        OF_RUST.get_or_init(|| {
            let routine = reference.load(Ordering::Relaxed);
            // SAFETY: it points to the personality routine of Rust, which has this ABI.
            unsafe { std::mem::transmute::<*mut c_void, Personality>(routine) }
        });
        let ours: Personality = personality;
        // Release: a thread that finds our routine finds Rust's routine in its place.
        reference.store(ours as *mut c_void, Ordering::Release);
    }

    unsafe extern "C" fn personality(
        version: c_int,
        actions: c_int,
        class: u64,
        exception: *mut c_void,
        frame: *mut c_void,
    ) -> c_int {
        if actions & FORCED != 0 && is_finalized() {
            loop {
                thread::park();
            }
        }
        match OF_RUST.get() {
            // SAFETY: the arguments are those of the unwinder.
            Some(of_rust) => unsafe { of_rust(version, actions, class, exception, frame) },
            None => std::process::abort(), // never: see redirect()
        }
    }

    /// Whether the interpreter is finalized, or is being finalized. It says so an instant after it has
    /// begun to end threads, hence the wait. Any other forced unwinding is an error of the code that has
    /// caused it, which Rust reports.
    fn is_finalized() -> bool {
        (0..100).any(|_| {
            // SAFETY: it may be called at any time.
            let finalized = unsafe { ffi::Py_IsInitialized() } == 0;
            if !finalized {
                thread::park_timeout(Duration::from_millis(1));
            }
            finalized
        })
    }
}
