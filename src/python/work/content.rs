//! `Content`: an item or a progress, as its queue delivers it.
//!
//! A queue in a file or on a server has bytes. Decoding them runs the code of the item's class, which may
//! raise, wait, or never return, so it is a part of the work at the item, not of the lease: the worker
//! decodes inside the boundary of the handler's call, where it can be cancelled and killed, and where a
//! failure is the item's. A worker process decodes the bytes itself.
//!
//! A lease without a worker is decoded by the call of `lease()` that returns it. An item that this call
//! cannot decode has failed, as by a handler, and the next one is leased; if the call is cancelled or
//! killed meanwhile, the item is requeued. So no lease is left behind for which there is no `Lease`.

use std::sync::OnceLock;

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::python::op::Visited;

/// An item or a progress.
pub(super) enum Content {
    /// An object of this process.
    Object(Py<PyAny>),
    /// Its bytes. Boxed, so that a lease of a queue in memory stays small.
    Encoded(Box<Encoded>),
}

/// Bytes, and the object when they have been decoded.
pub(super) struct Encoded {
    bytes: Py<PyBytes>,
    /// The decoder of the queue's codec.
    decode: Py<PyAny>,
    /// Written by the first thread that has decoded the bytes.
    decoded: OnceLock<Py<PyAny>>,
}

/// A content that can be sent to a worker process: the decoder and the bytes; or None and the object.
pub(super) type Sendable = (Option<Py<PyAny>>, Py<PyAny>);

impl Content {
    pub(super) fn encoded(decode: Py<PyAny>, bytes: Py<PyBytes>) -> Self {
        let decoded = OnceLock::new();
        Self::Encoded(Box::new(Encoded {
            bytes,
            decode,
            decoded,
        }))
    }

    /// The object. Decodes the bytes, if that was not done before.
    ///
    /// # Errors
    /// The exception of the decoder, or of the item's class.
    #[inline]
    pub(super) fn get(&self, py: Python<'_>) -> PyResult<&Py<PyAny>> {
        match self {
            Self::Object(object) => Ok(object),
            Self::Encoded(encoded) => encoded.get(py),
        }
    }

    pub(super) fn is_encoded(&self) -> bool {
        matches!(self, Self::Encoded(_))
    }

    pub(super) fn sendable(&self, py: Python<'_>) -> Sendable {
        match self {
            Self::Object(object) => (None, object.clone_ref(py)),
            Self::Encoded(encoded) => {
                let bytes = encoded.bytes.clone_ref(py).into_any();
                (Some(encoded.decode.clone_ref(py)), bytes)
            }
        }
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        match self {
            Self::Object(object) => visit.call(object),
            Self::Encoded(encoded) => {
                visit.call(&encoded.decode)?;
                visit.call(encoded.decoded.get())
            }
        }
    }
}

impl Encoded {
    fn get(&self, py: Python<'_>) -> PyResult<&Py<PyAny>> {
        if let Some(decoded) = self.decoded.get() {
            return Ok(decoded);
        }
        // Without a lock: another thread would wait for code of a user.
        let decoded = self.decode.call1(py, (&self.bytes,))?;
        Ok(self.decoded.get_or_init(|| decoded))
    }
}
