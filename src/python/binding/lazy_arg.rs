//! Arguments that a method takes unconverted and converts itself, and the types that the stub gives
//! for them.
//!
//! PyO3 converts arguments before the method runs and words the errors itself. Where the error has to
//! name the argument (`seconds`), or where no value may be refused (`__exit__`), the method takes a
//! [`LazyArg`].

use std::convert::Infallible;
use std::marker::PhantomData;
use std::ops::Deref;

use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::PyNone;
use pyo3::{PyTypeInfo, type_hint_identifier, type_hint_subscript, type_hint_union};

use crate::item::ItemId;

/// `from_py_with` for truth values: any object, as in `if`, because `threading` and `queue` take any.
pub(in crate::python) fn truth(given: &Bound<'_, PyAny>) -> PyResult<bool> {
    given.is_truthy()
}

/// The type of an argument, as the stub gives it.
pub(in crate::python) trait Hint {
    const TYPE: PyStaticExpr;
}

/// An argument as it was given. Taking it cannot fail, whatever it is; `H` is only for the stub.
#[derive(Clone, Copy)]
pub(in crate::python) struct LazyArg<'a, 'py, H>(Borrowed<'a, 'py, PyAny>, PhantomData<H>);

impl<'a, 'py, H: Hint> FromPyObject<'a, 'py> for LazyArg<'a, 'py, H> {
    type Error = Infallible;
    const INPUT_TYPE: PyStaticExpr = H::TYPE;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, Infallible> {
        Ok(Self(object, PhantomData))
    }
}

impl<'py, H> Deref for LazyArg<'_, 'py, H> {
    type Target = Bound<'py, PyAny>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// An object of the type in which the class is generic.
pub(in crate::python) struct Item(pub(in crate::python) Py<PyAny>);

impl<'py> IntoPyObject<'py> for Item {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = Infallible;
    const OUTPUT_TYPE: PyStaticExpr = PyStaticExpr::Name { id: "_T" };

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Infallible> {
        Ok(self.0.into_bound(py))
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Item {
    type Error = Infallible;
    const INPUT_TYPE: PyStaticExpr = PyStaticExpr::Name { id: "_T" };

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, Infallible> {
        Ok(Self(object.to_owned().unbind()))
    }
}

#[derive(Clone, Copy)]
pub(in crate::python) enum Float {}

impl Hint for Float {
    const TYPE: PyStaticExpr = type_hint_identifier!("builtins", "float");
}

/// A file descriptor, or an object with a `fileno()`.
#[derive(Clone, Copy)]
pub(in crate::python) enum File {}

impl Hint for File {
    const TYPE: PyStaticExpr = type_hint_identifier!("_typeshed", "FileDescriptorLike");
}

pub(in crate::python) type LazyFile<'a, 'py> = LazyArg<'a, 'py, File>;

// The arguments of `__exit__`; three times None for a block that ends without an exception. An
// `__exit__` that refused one of them would leave its block open.

const NONE: PyStaticExpr = PyNone::TYPE_HINT;
const EXCEPTION: PyStaticExpr = type_hint_identifier!("builtins", "BaseException");

#[derive(Clone, Copy)]
pub(in crate::python) enum ExceptionClass {}

impl Hint for ExceptionClass {
    const TYPE: PyStaticExpr = type_hint_union!(
        type_hint_subscript!(type_hint_identifier!("builtins", "type"), EXCEPTION),
        NONE
    );
}

#[derive(Clone, Copy)]
pub(in crate::python) enum Exception {}

impl Hint for Exception {
    const TYPE: PyStaticExpr = type_hint_union!(EXCEPTION, NONE);
}

#[derive(Clone, Copy)]
pub(in crate::python) enum Traceback {}

impl Hint for Traceback {
    const TYPE: PyStaticExpr =
        type_hint_union!(type_hint_identifier!("types", "TracebackType"), NONE);
}

pub(in crate::python) type LazyClass<'a, 'py> = LazyArg<'a, 'py, ExceptionClass>;
pub(in crate::python) type LazyException<'a, 'py> = LazyArg<'a, 'py, Exception>;
pub(in crate::python) type LazyTraceback<'a, 'py> = LazyArg<'a, 'py, Traceback>;

impl<'py> IntoPyObject<'py> for &ItemId {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = Infallible;
    const OUTPUT_TYPE: PyStaticExpr = type_hint_union!(u64::OUTPUT_TYPE, <&str>::OUTPUT_TYPE);

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Infallible> {
        match self {
            ItemId::Number(number) => Ok(number.into_pyobject(py)?.into_any()),
            ItemId::Name(name) => Ok(name.into_pyobject(py)?.into_any()),
        }
    }
}

impl<'py> IntoPyObject<'py> for ItemId {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = Infallible;
    const OUTPUT_TYPE: PyStaticExpr = <&ItemId>::OUTPUT_TYPE;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Infallible> {
        (&self).into_pyobject(py)
    }
}

impl FromPyObject<'_, '_> for ItemId {
    type Error = PyErr;
    const INPUT_TYPE: PyStaticExpr = <&ItemId>::OUTPUT_TYPE;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(name) = object.extract::<&str>() {
            return Ok(ItemId::Name(name.into()));
        }
        object.extract().map(ItemId::Number)
    }
}
