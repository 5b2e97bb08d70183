//! Items as bytes, and failures as text, by the functions of `desist._codec`.

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::python::op::Visited;
use crate::work::Bytes;

/// Functions of `desist._codec`.
pub(super) struct Codec {
    encode: Py<PyAny>,
    decode: Py<PyAny>,
    describe: Py<PyAny>,
}

impl Codec {
    pub(super) fn named(py: Python<'_>, name: &str) -> PyResult<Self> {
        let module = py.import("desist._codec")?;
        let (encode, decode) = module.call_method1("codec", (name,))?.extract()?;
        let describe = module.getattr("describe")?.unbind();
        Ok(Self {
            encode,
            decode,
            describe,
        })
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        let functions = [&self.encode, &self.decode, &self.describe];
        functions
            .into_iter()
            .try_for_each(|function| visit.call(function))
    }

    /// The item's bytes. TypeError: the codec cannot write it.
    pub(super) fn encode(&self, item: &Bound<'_, PyAny>) -> PyResult<Bytes> {
        let bytes = self.encode.bind(item.py()).call1((item,))?;
        Ok(bytes.extract::<&[u8]>()?.into())
    }

    pub(super) fn decode(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<Py<PyAny>> {
        self.decode.call1(py, (PyBytes::new(py, bytes),))
    }

    /// The text of an exception or `CancelCause`. It always succeeds, so that a failure which cannot be
    /// shown does not prevent its item's requeue.
    pub(super) fn describe(&self, py: Python<'_>, failure: &Py<PyAny>) -> Bytes {
        let text = self
            .describe
            .call1(py, (failure,))
            .and_then(|text| text.extract::<String>(py));
        let text = text.unwrap_or_else(|error| format!("a failure that cannot be shown: {error}"));
        text.into_bytes().into()
    }
}
