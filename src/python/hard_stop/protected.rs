//! Modules that hold locks of their own: a kill waits until the body has left them.
//!
//! `threading`, `queue`, `logging`, the import system and others take locks of the interpreter's or the
//! standard library's, which no ledger records. An exception that is raised in the middle of their code
//! may leave such a lock held, by a thread that is no more: then no thread of the process can log, or
//! import. So before a kill is raised from outside, the frames of the body are looked at, and while one
//! of them is of such a module the kill is deferred, as it is by a desist lock: until the body has left
//! the module, and no longer than the policy's `defer` (I42).
//!
//! | raised by | the thread that looks at the frames | when it is raised |
//! |---|---|---|
//! | a posted exception | the posting thread, which holds the GIL from the look to the post | where the body stands, or (from 3.13 on) at its next check |
//! | tracing, or an observed block | the body's own thread | at once |
//! | a signal's handler | the main thread itself | at once |
//!
//! A thread that finds the body inside posts nothing. It has the body traced instead, which raises as soon
//! as it has left: a body that is inside most of the time is hardly ever seen outside by chance. Without the
//! GIL no other thread can look (see `frames::of_thread`), so there the body is always traced.
//!
//! Between the post and the next check the body can have begun a function of such a module, and nothing
//! more: beginning a function is a check. An exception that is raised there has the effect that the call
//! was not made. That is right for calls that acquire something, and wrong for those that release it, so
//! `Killed` makes a releasing call first, see [`finish_release`].
//!
//! Only frames of the body count, not those that have called it: a thread's first frames are of
//! `threading`. A frame that does no more than call code of the user's does not count either.

use std::sync::Arc;

use crate::python::binding::interned::interned;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PySet, PyString, PyTuple};

use crate::python::binding::frames;

/// The modules of the standard library whose locks outlive a call. A package stands for all that is in it.
const OWN_LOCKS: [&str; 14] = [
    "_frozen_importlib",
    "_frozen_importlib_external",
    "_threading_local",
    "_weakrefset",
    "concurrent.futures",
    "contextlib",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "logging",
    "multiprocessing",
    "queue",
    "tempfile",
    "threading",
    "weakref",
];

/// Functions of theirs that call code of the user's, and hold nothing meanwhile.
const ONLY_CALL: [(&str, &str); 7] = [
    ("concurrent.futures.thread", "_worker"),
    ("concurrent.futures.thread", "run"),
    ("contextlib", "inner"),
    ("multiprocessing.process", "run"),
    ("threading", "_bootstrap"),
    ("threading", "_bootstrap_inner"),
    ("threading", "run"),
];

/// Functions that release a resource that another call has acquired.
const RELEASES: [&str; 4] = ["__exit__", "release", "_releaseLock", "task_done"];

/// Defer kills while their victim runs code of these modules, as for threading, queue or logging.
///
/// For modules that hold locks which an exception in the middle of their code would leave held. A
/// package stands for all of its modules. A kill waits until the victim has left them, for at most the
/// policy's `defer` seconds (one second for `kill_after`); the modules need not be imported yet.
///
/// Never blocks; cannot be undone.
///
/// Raises:
///     TypeError: a name that is no string.
///     ValueError: a name that is empty, or relative.
#[pyfunction]
#[pyo3(signature = (*names: "str"))]
pub(in crate::python) fn protect_modules(names: &Bound<'_, PyTuple>) -> PyResult<()> {
    let checked = names
        .iter()
        .map(|name| {
            let name = name.cast_into::<PyString>()?;
            if name.to_str()?.split('.').any(str::is_empty) {
                return Err(PyValueError::new_err(format!(
                    "a module is named as in sys.modules, 'package.module', not {}",
                    name.repr()?
                )));
            }
            Ok(name)
        })
        .collect::<PyResult<Vec<_>>>()?;
    let modules = modules(names.py())?;
    checked.into_iter().try_for_each(|name| modules.add(name))
}

/// The names of all modules with locks of their own. A set of Python's, whose methods are atomic and need
/// no lock that a fork could find held.
fn modules(py: Python<'_>) -> PyResult<&Bound<'_, PySet>> {
    static MODULES: PyOnceLock<Py<PySet>> = PyOnceLock::new();
    MODULES
        .get_or_try_init(py, || PySet::new(py, OWN_LOCKS).map(Bound::unbind))
        .map(|modules| modules.bind(py))
}

/// The module that the body with these frames, the innermost first, is inside of.
pub(super) fn module_around<'py>(
    frames: impl IntoIterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> PyResult<Option<Arc<str>>> {
    for frame in frames {
        if let Some(module) = module_of(&frame?)? {
            return Ok(Some(module.to_str()?.into()));
        }
    }
    Ok(None)
}

/// Removes the frames, of which the innermost comes first, up to the outermost one of a protected module.
pub(super) fn outside(frames: &mut Vec<Bound<'_, PyAny>>) -> PyResult<()> {
    let mut inside = 0;
    for (index, frame) in frames.iter().enumerate() {
        if module_of(frame)?.is_some() {
            inside = index + 1;
        }
    }
    frames.drain(..inside);
    Ok(())
}

/// The frame's module, if that holds locks of its own and the function is none of [`ONLY_CALL`].
fn module_of<'py>(frame: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyString>>> {
    let py = frame.py();
    let globals = frame.getattr(interned!(py, "f_globals"))?;
    let name = globals
        .cast::<PyDict>()?
        .get_item(interned!(py, "__name__"))?;
    let Some(Ok(name)) = name.map(Bound::cast_into_exact::<PyString>) else {
        return Ok(None); // code of no module
    };
    if !is_protected(&name)? {
        return Ok(None);
    }
    let function = function_of(frame)?;
    let only_calls = ONLY_CALL.contains(&(name.to_str()?, function.to_str()?));
    Ok((!only_calls).then_some(name))
}

fn function_of<'py>(frame: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
    let name = frames::code(frame)?.getattr(interned!(frame.py(), "co_name"))?;
    Ok(name.cast_into()?)
}

/// Is the module in the set, or in a package that is in the set?
fn is_protected(module: &Bound<'_, PyString>) -> PyResult<bool> {
    let modules = modules(module.py())?;
    if modules.contains(module)? {
        return Ok(true);
    }
    let name = module.to_str()?;
    for (end, _) in name.match_indices('.') {
        if modules.contains(&name[..end])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// On the body's thread, where `Killed` is about to be raised: if that is at the beginning of a call that
/// releases what another call has acquired, makes the call first. An exception that is posted inside of a
/// `with` block arrives there if `__exit__` is written in Python, and the interpreter has not checked for
/// exceptions since the post.
///
/// Called from 3.12 on. Before, the exception is made too late, but arrives where it was posted.
pub(super) fn finish_release(py: Python<'_>) {
    let begun = || -> PyResult<()> {
        let Some(frame) = frames::frame(py) else {
            return Ok(());
        };
        let releases = RELEASES.contains(&function_of(&frame)?.to_str()?);
        if releases && module_of(&frame)?.is_some() && frames::is_at_its_start(&frame)? {
            call_anew(&frame)?;
        }
        Ok(())
    };
    // An exception of the call is dropped: the killed code gets `Killed` in its place.
    let _ = begun();
}

/// Calls the function of a frame that is at its start, with the same arguments.
fn call_anew(frame: &Bound<'_, PyAny>) -> PyResult<()> {
    const VARARGS: usize = 0x04;
    const KEYWORDS: usize = 0x08;
    let py = frame.py();
    let code = frames::code(frame)?;
    let number = |name: &str| code.getattr(name)?.extract::<usize>();
    let (positional, keyword_only) = (number("co_argcount")?, number("co_kwonlyargcount")?);
    let flags = number("co_flags")?;
    let names: Vec<Bound<'_, PyAny>> = code.getattr("co_varnames")?.extract()?;
    let locals = frame.getattr("f_locals")?;
    let value = |name| locals.get_item(name);
    let mut names = names.into_iter();
    let mut arguments = names
        .by_ref()
        .take(positional)
        .map(value)
        .collect::<PyResult<Vec<_>>>()?;
    let keywords = PyDict::new(py);
    for name in names.by_ref().take(keyword_only) {
        keywords.set_item(&name, value(name.clone())?)?;
    }
    if flags & VARARGS != 0 {
        let more = names.next().map(value).transpose()?;
        arguments.extend(more.map_or(Ok(Vec::new()), |more| more.extract())?);
    }
    if flags & KEYWORDS != 0 {
        if let Some(more) = names.next().map(value).transpose()? {
            keywords.update(more.cast::<PyDict>()?.as_mapping())?;
        }
    }
    let globals = frame.getattr(interned!(py, "f_globals"))?;
    let function = py
        .import("types")?
        .getattr("FunctionType")?
        .call1((code, globals))?;
    function.call(PyTuple::new(py, arguments)?, Some(&keywords))?;
    Ok(())
}

/// While it lives, no garbage is collected: a finalizer may release the GIL, between a look and a post. Without
/// the GIL nothing is done: there is no look, and other threads would see that the collector is off.
pub(super) struct NoCollection<'py>(Option<Bound<'py, PyModule>>);

impl<'py> NoCollection<'py> {
    pub(super) fn begin(py: Python<'py>) -> Self {
        let disable = || {
            let gc = py.import(interned!(py, "gc"))?;
            let collects =
                frames::has_gil(py)? && gc.call_method0(interned!(py, "isenabled"))?.is_truthy()?;
            if collects {
                gc.call_method0(interned!(py, "disable"))?;
            }
            Ok::<_, PyErr>(collects.then_some(gc))
        };
        // These functions do not fail.
        Self(disable().ok().flatten())
    }
}

impl Drop for NoCollection<'_> {
    fn drop(&mut self) {
        if let Some(gc) = &self.0 {
            let _ = gc.call_method0(interned!(gc.py(), "enable"));
        }
    }
}
