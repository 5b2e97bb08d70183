//! Whether a call runs the work: the judge of all functions that are handed in for their effect, and of
//! their results (I43).
//!
//! The call of a coroutine function, a generator function or an asynchronous generator function returns
//! before the first instruction of its code. So [`check_function`] refuses such a function where it is
//! handed in, before anything is started or stored. It looks for the code that a call reaches: through
//! bound methods, `functools.partial`, `functools.cache` and the `__call__` of the object's class. It does
//! not follow `__wrapped__` of a function, for `functools.wraps` also marks a function that runs the
//! coroutine, with `asyncio.run()` for instance.
//!
//! Only the call shows the rest, and [`check_result`] looks at its result. What is refused depends on the
//! code that gets the result:
//!
//! | result | handed on to a caller | dropped or acknowledged |
//! |---|---|---|
//! | a coroutine | refused, and closed | refused, and closed |
//! | a generator, an asynchronous generator | a result | refused; a generator is closed |
//! | another awaitable, a future of asyncio for instance | a result | refused |
//! | anything else, and a coroutine or generator that has run to its end | a result | a result |
//!
//! A caller can iterate over a generator, and an executor of the standard library hands it on. A
//! coroutine is refused there as well: it is what an `async def` function returns whose `await` was forgotten.
//!
//! `check_result` runs inside the boundary of the task, since closing a coroutine may run its code.
#![allow(unsafe_code)] // a slot of a type

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyFunction, PyTuple, PyType};

// Of `inspect`, whose import takes longer than that of desist.
const CO_GENERATOR: u32 = 0x20;
const CO_COROUTINE: u32 = 0x80;
const CO_ITERABLE_COROUTINE: u32 = 0x100;
const CO_ASYNC_GENERATOR: u32 = 0x200;

/// Steps from an object to the code of its call. A chain of objects may lead back to itself.
const DEEPEST: usize = 100;

/// Code that a call does not run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deferred {
    Coroutine,
    Generator,
    AsyncGenerator,
    /// An object with `__await__` that is no coroutine.
    Awaitable,
}

impl Deferred {
    fn of_flags(flags: u32) -> Option<Self> {
        if flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE) != 0 {
            Some(Self::Coroutine)
        } else if flags & CO_ASYNC_GENERATOR != 0 {
            Some(Self::AsyncGenerator)
        } else if flags & CO_GENERATOR != 0 {
            Some(Self::Generator)
        } else {
            None
        }
    }

    fn of_object(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let py = object.py();
        Ok(if is_a(object, types::coroutine(py)?) {
            Some(Self::Coroutine)
        } else if is_a(object, types::generator(py)?) {
            Some(Self::Generator)
        } else if is_a(object, types::async_generator(py)?) {
            Some(Self::AsyncGenerator)
        } else if is_awaitable(object) {
            Some(Self::Awaitable)
        } else {
            None
        })
    }

    /// With its article.
    fn name(self) -> &'static str {
        match self {
            Self::Coroutine => "a coroutine",
            Self::Generator => "a generator",
            Self::AsyncGenerator => "an asynchronous generator",
            Self::Awaitable => "an awaitable",
        }
    }

    /// What a function does that runs the code.
    fn advice(self) -> &'static str {
        match self {
            Self::Coroutine | Self::Awaitable => "runs it, with asyncio.run() for instance",
            Self::Generator => "iterates over it",
            Self::AsyncGenerator => "iterates over it, within asyncio.run() for instance",
        }
    }

    /// The attribute with its frame, which is None when the code has run to its end.
    fn frame(self) -> Option<&'static str> {
        match self {
            Self::Coroutine => Some("cr_frame"),
            Self::Generator => Some("gi_frame"),
            Self::AsyncGenerator => Some("ag_frame"),
            Self::Awaitable => None,
        }
    }
}

/// Refuse a function whose call does not run its code, and an object that cannot be called. `what` is the
/// subject of the message, such as "handler"; `advice`, if given, replaces that of the message.
pub(in crate::python) fn check_function(
    function: &Bound<'_, PyAny>,
    what: &str,
    advice: Option<&str>,
) -> PyResult<()> {
    if !function.is_callable() {
        let kind = function.get_type().qualname()?;
        return Err(PyTypeError::new_err(format!(
            "{what} must be callable, not {kind}"
        )));
    }
    let Some(deferred) = deferred_by(function)? else {
        return Ok(());
    };
    let name = match function.getattr_opt("__qualname__")? {
        Some(name) => name.str()?,
        None => function.repr()?,
    };
    let advice = advice.map_or_else(
        || format!("pass a function that {}", deferred.advice()),
        ToOwned::to_owned,
    );
    Err(PyTypeError::new_err(format!(
        "{what} must run when it is called, but {name} is {} function, whose call returns before its \
         code runs: {advice}",
        deferred.name()
    )))
}

/// Which code the call of this object does not run. `None`: the call runs it, as far as can be known before.
fn deferred_by(function: &Bound<'_, PyAny>) -> PyResult<Option<Deferred>> {
    let py = function.py();
    let mut callable = function.clone();
    for _ in 0..DEEPEST {
        if callable.is_instance_of::<PyFunction>() {
            let flags = callable.getattr("__code__")?.getattr("co_flags")?;
            return Ok(Deferred::of_flags(flags.extract()?));
        }
        let next = if is_a(&callable, types::method(py)?) {
            callable.getattr("__func__")?
        } else if callable.is_instance(types::partial(py)?)? {
            callable.getattr("func")?
        } else if is_a(&callable, types::cache(py)?) {
            callable.getattr("__wrapped__")?
        } else {
            callable.get_type().getattr("__call__")?
        };
        if next.is(&callable) {
            break; // of native code
        }
        callable = next;
    }
    Ok(None)
}

/// Refuse the result of a call that has not run its work; closes it, so that it is not reported as never
/// awaited. `handed_on`: a caller gets it, so that a generator, or another awaitable than a coroutine, is a
/// result as any.
///
/// # Errors
/// A `TypeError` that says what was returned; or the exception of the code that was closed.
#[inline]
pub(in crate::python) fn check_result(
    result: Bound<'_, PyAny>,
    handed_on: bool,
) -> PyResult<Bound<'_, PyAny>> {
    if result.is_none() {
        return Ok(result);
    }
    match Deferred::of_object(&result)? {
        None => Ok(result),
        Some(deferred) if handed_on && deferred != Deferred::Coroutine => Ok(result),
        Some(deferred) => refuse_result(result, deferred),
    }
}

#[cold]
fn refuse_result(result: Bound<'_, PyAny>, deferred: Deferred) -> PyResult<Bound<'_, PyAny>> {
    if let Some(frame) = deferred.frame() {
        if result.getattr(frame)?.is_none() {
            return Ok(result);
        }
    }
    let name = match result.getattr_opt("__qualname__")? {
        Some(name) => name.str()?,
        None => result.get_type().qualname()?,
    };
    let message = format!(
        "the function returned {}, {name}, whose code has not run to its end: pass a function that {}",
        deferred.name(),
        deferred.advice()
    );
    // An asynchronous generator has no close(); that of another awaitable may be its user's.
    if matches!(deferred, Deferred::Coroutine | Deferred::Generator) {
        result.call_method0("close")?;
    }
    Err(PyTypeError::new_err(message))
}

fn is_a(object: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> bool {
    object.get_type().is(class)
}

/// As `isinstance(object, collections.abc.Awaitable)`, without its search for subclasses.
fn is_awaitable(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached, and the object is alive. The table of a type's methods lives as long as the type.
    unsafe {
        let methods = (*ffi::Py_TYPE(object.as_ptr())).tp_as_async;
        !methods.is_null() && (*methods).am_await.is_some()
    }
}

/// Classes of the standard library that every program has loaded.
mod types {
    use super::{Bound, Py, PyOnceLock, PyResult, PyType, Python};

    macro_rules! classes {
        ($($function:ident is $module:literal, $class:literal;)+) => {
            $(
                pub(super) fn $function(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
                    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
                    CLASS.import(py, $module, $class)
                }
            )+
        };
    }

    classes! {
        coroutine is "types", "CoroutineType";
        generator is "types", "GeneratorType";
        async_generator is "types", "AsyncGeneratorType";
        method is "types", "MethodType";
        partial is "functools", "partial";
        cache is "functools", "_lru_cache_wrapper";
    }
}

/// Raise TypeError unless a call of the function runs its code: it is callable, and neither a coroutine
/// function nor a generator function, whose call returns before its code runs. `what` is its name in the
/// message. Methods, partials and callable objects are looked through.
#[pyfunction]
#[pyo3(signature = (function: "object", what, advice = None))]
pub(in crate::python) fn check_runnable(
    function: &Bound<'_, PyAny>,
    what: &str,
    advice: Option<&str>,
) -> PyResult<()> {
    check_function(function, what, advice)
}

/// Call a function whose result is dropped or acknowledged, and return the result.
///
/// Raises:
///     TypeError: it has returned a coroutine, a generator or another awaitable, whose code has not run to
///         its end.
#[pyfunction]
#[pyo3(
    signature = (r#fn: "Callable[..., _T]", /, *arguments: "object", **named: "object") -> "_T"
)]
pub(in crate::python) fn call_for_effect<'py>(
    r#fn: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
    named: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    check_result(r#fn.call(arguments, named)?, false)
}
