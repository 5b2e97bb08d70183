from __future__ import annotations

import sys
import threading

import cpython
import desist

EXCLUDED = {
    "CRLockTests.test_signature": (
        "what RLock() is called with: desist's takes name and on_kill, and nothing by position"
    ),
    "EventTests.test_at_fork_reinit": "uses Event._cond, which threading alone has",
    "MiscTestCase": "compares threading.__all__ with what the module threading defines",
    "PyRLockTests": "as CRLockTests: desist has one RLock",
    "SubinterpThreadingTests": "desist cannot be imported in the interpreters that they make",
    "ThreadTests.test_disallow_instantiation": (
        "before 3.13 the class of a lock cannot be called; Lock is its class here, as from 3.13 on"
    ),
    "ConditionTests.test_nan_timeout": "looks at the private Condition._waiters",
    "ThreadTests.test_finalize_daemon_thread_hang": (
        "takes logging's last flush, before the interpreter is finalized, for one during it: it"
        " looks at sys.is_finalizing without a call; and desist, by concurrent.futures, has"
        " imported logging"
    ),
    "ThreadTests.test_import_from_another_thread": (
        "wants a process that has not imported threading; desist does"
    ),
    "ThreadTests.test_lock_no_subclass": "a desist.Lock may be subclassed: RLock is one",
}
if (3, 12) <= sys.version_info < (3, 12, 3):
    EXCLUDED["ThreadJoinOnShutdown.test_3_join_in_forked_from_thread"] = (
        "races against the interpreter, which for a while did not fork once the main thread had"
        " come to its end (gh-113964)"
    )
module = cpython.threading_tests()
globals().update(cpython.adopt(module, EXCLUDED))


def test_the_tests_use_desist() -> None:
    assert module.LockTests.locktype is desist.Lock
    assert module.CRLockTests.locktype is desist.RLock
    assert module.ConditionTests.condtype is desist.Condition
    assert module.EventTests.eventtype is desist.Event
    assert module.SemaphoreTests.semtype is desist.Semaphore
    assert module.BoundedSemaphoreTests.semtype is desist.BoundedSemaphore
    assert module.BarrierTests.barriertype is desist.Barrier
    assert issubclass(module.TestThread, desist.Thread)
    assert module.threading.Timer is desist.Timer


def test_their_scripts_use_desist_too() -> None:
    code = "import threading; print(threading.Thread, threading.main_thread().name)"
    _, out, _ = module.assert_python_ok("-c", code)
    assert out.split(b"\n")[0] == b"<class 'desist._thread.Thread'> MainThread"


def test_other_code_does_not_use_desist() -> None:
    import test.lock_tests  # type: ignore[import-not-found]

    assert test.lock_tests.threading is threading
    assert issubclass(threading.Timer, threading.Thread)
    assert not issubclass(threading.Timer, desist.Thread)
