//! The names by which the extension calls objects that are written in Python.
//!
//! Each module here is a protocol of `desist._ports` and lists its members, so that a method cannot
//! be renamed on one side only: `tests/python/test_ports.py` compares the two, and a type checker
//! compares the protocols with the classes that implement them.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// `protocol!(name is "Protocol": member, ...)`: a function for each member that returns its name,
/// interned.
macro_rules! protocols {
    ($($(#[$about:meta])* $module:ident is $protocol:literal: $($member:ident),+;)+) => {
        $(
            $(#[$about])*
            pub(in crate::python) mod $module {
                use super::*;

                $(
                    pub(in crate::python) fn $member(py: Python<'_>) -> &Bound<'_, PyString> {
                        crate::python::binding::interned::interned!(py, stringify!($member))
                    }
                )+
            }
        )+

        /// The protocols of `desist._ports` that the extension calls, with the members it calls.
        #[pyfunction]
        #[pyo3(signature = () -> "dict[str, list[str]]")]
        pub(super) fn ports(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
            let ports = PyDict::new(py);
            $(
                ports.set_item($protocol, [$(stringify!($member)),+])?;
            )+
            Ok(ports)
        }
    };
}

protocols! {
    /// Settles the future of a submitted item.
    promise is "Promise": context, finish, fail;
    /// A queue that an engine on a server keeps.
    engine_source is "EngineSource": deliver, retry;
    /// One lease of such a queue.
    held_delivery is "HeldDelivery":
        id, epoch, attempt, body, decode, context, progress, key, time_limit, begun, ack, nack, discard,
        heartbeat, take_promise;
    /// Told of the events of a pool.
    pool_observer is "PoolObserver": note, close;
    /// An exception of a worker process, without its object.
    lost_exception is "LostException": type_names;
    /// The hooks of a subclass of `GroupCore`.
    group_hooks is "GroupHooks": _verdict, _on_abandoned, _start_thread;
    /// A task of a group.
    group_task is "GroupTask": _run, _abandoned;
    /// A subclass of `OwnerBlock`.
    work_owner is "WorkOwner": _join_work, _end_work;
    /// A subclass of `Queue` with hooks of its own.
    hooked_queue is "HookedQueue": _set_up, _has_news;
    /// A class of desist's whose objects `wait_any` takes as they are.
    waitable is "Waitable": _done_op;
}
