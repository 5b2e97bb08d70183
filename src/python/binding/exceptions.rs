//! The exceptions and warnings of `desist._exceptions`, which are written in Python.
//!
//! The module is imported when the first of them is needed, and cached: an import during the
//! extension's own import would be circular.

use std::ffi::{CStr, CString};

use pyo3::exceptions::PyDeprecationWarning;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use crate::error::ScopeMisuse;
use crate::python::binding::swallow::Place;

/// A class of `desist._exceptions`.
pub(in crate::python) fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    static EXCEPTIONS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let exceptions =
        EXCEPTIONS.get_or_try_init(py, || py.import("desist._exceptions").map(Bound::unbind))?;
    Ok(exceptions.bind(py).getattr(name)?.cast_into()?)
}

/// An exception of the class with this name. The failure to make one is itself returned.
pub(in crate::python) fn ordinary(py: Python<'_>, name: &str, message: &impl ToString) -> PyErr {
    match class(py, name) {
        Ok(class) => PyErr::from_type(class, message.to_string()),
        Err(failure) => failure,
    }
}

/// Is `error` of the class with this name, or of a subclass?
pub(in crate::python) fn is(py: Python<'_>, error: &PyErr, name: &str) -> bool {
    class(py, name).is_ok_and(|class| error.is_instance(py, &class))
}

pub(in crate::python) fn misuse(py: Python<'_>, misuse: ScopeMisuse) -> PyErr {
    ordinary(py, "ScopeMisuse", &misuse)
}

pub(in crate::python) fn fenced(py: Python<'_>, what: &impl ToString) -> PyErr {
    ordinary(py, "Fenced", what)
}

pub(in crate::python) fn warn_deprecated(py: Python<'_>, message: &CStr) -> PyResult<()> {
    let category = py.get_type::<PyDeprecationWarning>();
    PyErr::warn(py, &category, message, 1)
}

/// The namespace of the module in this file. That of `sys` if there is none, as CPython has it for code
/// without a namespace.
fn globals_of<'py>(py: Python<'py>, file: &str) -> PyResult<Bound<'py, PyDict>> {
    let sys = py.import("sys")?;
    let modules = sys.getattr("modules")?.call_method0("copy")?;
    for module in modules.call_method0("values")?.try_iter()? {
        let Ok(module) = module?.cast_into::<PyModule>() else {
            continue; // any object may be there
        };
        let its = module.dict().get_item("__file__")?;
        if its.is_some_and(|its| its.extract::<&str>().is_ok_and(|its| its == file)) {
            return Ok(module.dict());
        }
    }
    Ok(sys.dict())
}

/// Warns of code that has swallowed `Cancelled`, at the place where it did so if that is known.
pub(in crate::python) fn warn_swallowed(py: Python<'_>, place: Option<Place>) {
    const ADVICE: &str = "do not catch Cancelled (a bare `except:` or `except BaseException:` does) \
        without raising it again; code that has to wait while it cleans up belongs into `with \
        desist.cleanup():`";
    let warn = || -> PyResult<()> {
        let category = class(py, "CancelledSwallowedWarning")?;
        let Some(place) = place else {
            let message = format!("this code was told that it is cancelled, and went on: {ADVICE}");
            return PyErr::warn(py, &category, &CString::new(message)?, 1);
        };
        let message = format!(
            "{}() has swallowed Cancelled, and the code went on: {ADVICE}",
            place.function
        );
        let globals = globals_of(py, &place.file)?;
        let more = PyDict::new(py);
        more.set_item("module", globals.get_item("__name__")?)?;
        let registry = ("__warningregistry__", PyDict::new(py));
        more.set_item("registry", globals.call_method1("setdefault", registry)?)?;
        let arguments = (message, category, place.file, place.line);
        py.import("warnings")?
            .call_method("warn_explicit", arguments, Some(&more))?;
        Ok(())
    };
    if let Err(error) = warn() {
        // A filter turns warnings into errors, but the thread is about to raise Cancelled.
        error.write_unraisable(py, None);
    }
}
