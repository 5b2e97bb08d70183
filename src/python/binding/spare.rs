//! Objects that are made and let go of all the time, and used again.
//!
//! To make an object and let it go takes longer than most of what is done with a short-lived one.
//! So the interpreter keeps some of those that it makes itself, and this does the same with ours:
//! an object that nobody has any more is emptied, given a reference, and kept. What was in it is let
//! go of at once. Where threads run in parallel no object is kept.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | who loses its last reference is left to its class's `tp_dealloc`, also in a class on the heap | 3.10-3.15 | `test_a_lease_is_used_again` |
//! | an object that is given a reference there lives on | 3.10-3.15 | the same |
//! | an object may be taken from the collector, which then never shows it to anybody | 3.10-3.15 | `test_the_collector_has_no_lease` |
#![allow(unsafe_code)] // a slot of a class, and what is in an object that nobody has

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::sync::OnceLock;

use pyo3::PyClass;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;

use crate::atomics::{Exclusion, MutexBy};
use crate::python::binding::attached::{Attached, ONE_AT_A_TIME};

/// So many are kept.
const MOST: usize = 16;

/// What is in an object whose class is [`Spared`]; nothing in one that is kept, or [`Vacant`].
pub(in crate::python) struct Contents<T>(UnsafeCell<Option<T>>);

// SAFETY: it changes only while one thread alone has the object, so others share it as it is.
unsafe impl<T: Send + Sync> Sync for Contents<T> {}

impl<T> Deref for Contents<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: whoever has the object at all has no part in changing it.
        match unsafe { &*self.0.get() } {
            Some(contents) => contents,
            None => unreachable!("whoever has the object has filled it"),
        }
    }
}

/// A class whose objects are used again. It has no subclasses.
pub(in crate::python) trait Spared: PyClass<Frozen = True> + Sync {
    type Contents;

    /// A new object.
    fn make(py: Python<'_>, contents: Contents<Self::Contents>) -> PyResult<Bound<'_, Self>>;

    fn contents(&self) -> &Contents<Self::Contents>;

    /// Is it worth keeping, and can [`Spared::let_go`] let go of all that is in it?
    fn is_usual(contents: &Self::Contents) -> bool;

    /// Let go of what was in it. It is not known to PyO3 to be called from Python: whatever owns an
    /// object is to be bound when it is dropped, and a panic ends the process.
    fn let_go(contents: Self::Contents, py: Python<'_>);

    fn spares() -> &'static Spares;
}

/// Those of a class that are kept.
pub(in crate::python) struct Spares {
    kept: MutexBy<Attached, Vec<Py<PyAny>>>,
    /// What was in the class's slot.
    dealloc: OnceLock<ffi::destructor>,
}

impl Spares {
    pub(in crate::python) const fn new() -> Self {
        Self {
            kept: MutexBy::const_new(<Attached as Exclusion>::INIT, Vec::new()),
            dealloc: OnceLock::new(),
        }
    }
}

/// An object that is to be filled: with what must not be lost for want of memory for it.
pub(in crate::python) struct Vacant<'py, C>(Bound<'py, C>);

impl<'py, C: Spared> Vacant<'py, C> {
    /// One that was kept, or else a new one.
    #[inline]
    pub(in crate::python) fn new(py: Python<'py>) -> PyResult<Self> {
        if !ONE_AT_A_TIME {
            return Self::made(py);
        }
        let kept = C::spares().kept.lock().pop();
        match kept {
            // SAFETY: only such ones are kept.
            Some(spare) => Ok(Self(unsafe { spare.into_bound(py).cast_into_unchecked() })),
            None => Self::made(py),
        }
    }

    #[cold]
    fn made(py: Python<'py>) -> PyResult<Self> {
        let object = C::make(py, Contents(UnsafeCell::new(None)))?;
        // SAFETY: it is live. What it refers to does not go in circles as far as the collector
        // knows: its class has nothing that shows it more.
        unsafe { ffi::PyObject_GC_UnTrack(object.as_ptr().cast()) };
        Ok(Self(object))
    }

    #[inline]
    pub(in crate::python) fn fill(self, contents: C::Contents) -> Bound<'py, C> {
        // SAFETY: nobody else has it yet.
        unsafe { *self.0.get().contents().0.get() = Some(contents) };
        self.0
    }
}

/// Have a class's objects used again, from now on.
pub(in crate::python) fn install<C: Spared>(py: Python<'_>) -> PyResult<()> {
    if !ONE_AT_A_TIME || C::spares().dealloc.get().is_some() {
        return Ok(()); // or the module is made again, of the same classes
    }
    let class = C::type_object_raw(py);
    // SAFETY: the class is live, made on the heap, and has no object yet.
    let slot = unsafe { &mut (*class).tp_dealloc };
    let Some(usual) = slot.replace(dealloc::<C>) else {
        let message = format!("{} lets go of nothing", C::NAME);
        return Err(PyRuntimeError::new_err(message));
    };
    C::spares().dealloc.get_or_init(|| usual);
    Ok(())
}

/// What the class's slot calls.
unsafe extern "C" fn dealloc<C: Spared>(object: *mut ffi::PyObject) {
    // SAFETY: the interpreter calls it attached, with an object of the class that nobody has any
    // more. `Borrowed` is a pointer to one.
    unsafe {
        let py = Python::assume_attached();
        let this = (&raw const object).cast::<Borrowed<'_, '_, C>>();
        let contents = (*this).get().contents().0.get();
        let mut kept = C::spares().kept.lock();
        if kept.len() < MOST && (*contents).as_ref().is_none_or(C::is_usual) {
            kept.push(Bound::from_borrowed_ptr(py, object).unbind()); // its reference
            let before = (*contents).take();
            drop(kept);
            if let Some(before) = before {
                C::let_go(before, py);
            }
            return;
        }
        drop(kept);
        if let Some(usual) = C::spares().dealloc.get() {
            usual(object);
        }
    }
}
