//! Items as bytes, and failures as text, by the functions of `desist._codec`.

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::content::Content;
use crate::python::op::Visited;
use crate::work::Bytes;

/// Functions of `desist._codec`.
pub(super) struct Codec {
    encode: Py<PyAny>,
    decode: Py<PyAny>,
    describe: Py<PyAny>,
    dead_item: Py<PyAny>,
}

impl Codec {
    pub(super) fn named(py: Python<'_>, name: &str) -> PyResult<Self> {
        let module = py.import("desist._codec")?;
        let (encode, decode) = module.call_method1("codec", (name,))?.extract()?;
        Ok(Self {
            encode,
            decode,
            describe: module.getattr("describe")?.unbind(),
            dead_item: module.getattr("dead_item")?.unbind(),
        })
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        let functions = [&self.encode, &self.decode, &self.describe, &self.dead_item];
        functions
            .into_iter()
            .try_for_each(|function| visit.call(function))
    }

    /// The item's bytes. TypeError: the codec cannot write it.
    pub(super) fn encode(&self, item: &Bound<'_, PyAny>) -> PyResult<Bytes> {
        let bytes = self.encode.bind(item.py()).call1((item,))?;
        Ok(bytes.extract::<&[u8]>()?.into())
    }

    /// An item or a progress that the lease's user decodes.
    pub(super) fn content(&self, py: Python<'_>, bytes: &[u8]) -> Content {
        Content::encoded(self.decode.clone_ref(py), PyBytes::new(py, bytes).unbind())
    }

    /// A dead item, and its failures. If it cannot be decoded, its bytes, and the reason as one more failure.
    pub(super) fn dead_item(
        &self,
        py: Python<'_>,
        bytes: &[u8],
        failures: Vec<String>,
    ) -> PyResult<(Py<PyAny>, Vec<String>)> {
        let bytes = PyBytes::new(py, bytes);
        let shown = self.dead_item.call1(py, (&self.decode, bytes, failures))?;
        shown.extract(py)
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
