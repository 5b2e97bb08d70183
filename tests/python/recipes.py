"""Other ways to stop a thread, as packages and as short snippets, and how each fails.

Each scene brings one of them to the point at which it fails, deterministically, and prints the
damage. `alone()` runs it in a process of its own, which may end in any state.
"""

from __future__ import annotations

import ctypes
import inspect
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import types
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


def alone(scene: Callable[[], object]) -> list[str]:
    """Run a scene and return the lines that it printed."""
    code = f"import recipes; recipes.{scene.__name__}(); recipes.end()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def end() -> None:
    """Exit without waiting for stuck threads."""
    sys.stdout.flush()
    os._exit(0)


def tell(*what: object) -> None:
    print(*what)  # noqa: T201 (the answer of a scene)


# --- thread2, and kthread, which is similar -------------------------------------------------------


def async_raise(ident: int | None, kind: object) -> None:
    if not inspect.isclass(kind):
        raise TypeError("Only types can be raised (not instances)")
    found = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_long(ident or 0), ctypes.py_object(kind)
    )
    if found == 0:
        raise ValueError("invalid thread id")


class Thread2(threading.Thread):
    def raise_exc(self, kind: object) -> None:
        async_raise(self.ident, kind)

    def terminate(self) -> None:
        self.raise_exc(SystemExit)


class Trap:
    """A lock with a kill right behind its acquire, where a thread may be at any time."""

    def __init__(self, kill: Callable[[], object]) -> None:
        self.lock = threading.Lock()
        self.kill = kill

    def acquire(self) -> None:
        self.lock.acquire()
        self.kill()

    def __enter__(self) -> None:
        self.acquire()

    def locked(self) -> bool:
        return self.lock.locked()

    def release(self) -> None:
        self.lock.release()

    def __exit__(self, *_: object) -> None:
        self.release()


def thread2_leaves_a_lock_held() -> None:
    trap = Trap(lambda: thread.terminate())  # noqa: PLW0108 (it is made below)

    def body() -> None:
        trap.acquire()
        try:
            pass
        finally:
            trap.release()

    thread = Thread2(target=body)
    thread.start()
    thread.join()
    tell("held without a holder:", trap.locked())


def kthread_leaves_a_queue_locked() -> None:
    import kthread

    jobs: queue.Queue[int] = queue.Queue()
    trap = Trap(lambda: thread.terminate())  # noqa: PLW0108
    jobs.put(1)
    jobs.mutex = trap.lock
    jobs.not_empty = threading.Condition(trap)  # type: ignore[arg-type]
    thread = kthread.KThread(target=jobs.get)
    thread.start()
    thread.join()
    tell("every get() and put() hangs:", not jobs.mutex.acquire(blocking=False))


def thread2_loses_an_item() -> None:
    class Jobs(queue.Queue[int]):
        def _get(self) -> int:
            item = super()._get()
            thread.terminate()
            return item

    jobs, done = Jobs(), []

    def body() -> None:
        item = jobs.get()
        try:
            done.append(item)
        except SystemExit:
            jobs.put(item)

    jobs.put(1)
    thread = Thread2(target=body)
    thread.start()
    thread.join()
    tell("queued:", jobs.qsize(), "done:", len(done))


def kthread_is_swallowed() -> None:
    import kthread

    def body() -> None:
        with suppress(BaseException):
            thread.kill()
        tell("goes on")

    thread = kthread.KThread(target=body)
    thread.start()
    thread.join()


def kthread_cannot_raise_an_instance() -> None:
    import kthread

    def body() -> None:
        try:
            thread.raise_exc(ValueError("why"))
        except TypeError as refused:
            tell(refused)
        try:
            thread.raise_exc(ValueError)
        except ValueError as raised:
            tell(repr(raised))

    thread = kthread.KThread(target=body)
    thread.start()
    thread.join()


def kthread_does_not_notice_while_it_waits() -> None:
    import kthread

    kill_in_a_wait(kthread.KThread)


def kill_in_a_wait(kind: Callable[..., Any]) -> None:
    waits, wakes = threading.Lock(), threading.Lock()
    waits.acquire()
    wakes.acquire()

    def body() -> None:
        # One call into C, so that the wait has begun when `begun` is set.
        list(map(methodcaller("__call__"), (waits.release, wakes.acquire)))
        tell("goes on")

    thread = kind(target=body)
    thread.start()
    waits.acquire()
    thread.kill()
    tell("killed; alive:", thread.is_alive())
    wakes.release()
    thread.join()
    tell("has taken the lock and left it held:", wakes.locked())


def a_thread_id_is_wider_than_an_int() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    ident, kind = thread.ident, ctypes.py_object(SystemExit)
    assert ident is not None
    post = ctypes.pythonapi.PyThreadState_SetAsyncExc
    # ctypes passes a bare number as a C int: the published Thread2 does that.
    tell("found by:", "number", post(ident, kind))
    for width in (ctypes.c_int, ctypes.c_long, ctypes.c_ulong):
        tell("found by:", width(ident).value == ident, post(width(ident), kind))


# --- the trace recipe -----------------------------------------------------------------------------


class TracedThread(threading.Thread):
    """Checks a flag in front of every line, from its start."""

    killed = False
    checks = 0

    def run(self) -> None:
        sys.settrace(self.check)
        super().run()

    def check(self, _frame: FrameType, event: str, _argument: object) -> Any:
        self.checks += 1
        if self.killed and event == "line":
            raise SystemExit
        return self.check

    def kill(self) -> None:
        self.killed = True


def tracing_does_not_notice_while_it_waits() -> None:
    kill_in_a_wait(TracedThread)


def tracing_checks_every_line() -> None:
    def body() -> None:
        for _ in range(1000):
            pass

    thread = TracedThread(target=body)
    thread.start()
    thread.join()
    tell("1000 turns of a loop, without a kill, checks:", thread.checks // 1000 * 1000)


# --- the exit flag --------------------------------------------------------------------------------


class FlagThread(threading.Thread):
    def __init__(self, target: Callable[[FlagThread], object]) -> None:
        super().__init__(target=target, args=(self,), daemon=True)
        self._stop_event = threading.Event()

    def stop(self) -> None:
        self._stop_event.set()

    def stopped(self) -> bool:
        return self._stop_event.is_set()


def a_flag_is_not_seen_by_a_wait() -> None:
    jobs: queue.Queue[str] = queue.Queue()
    looked, done = threading.Event(), []

    def body(thread: FlagThread) -> None:
        while not thread.stopped():
            looked.set()
            done.append(jobs.get())

    thread = FlagThread(body)
    thread.start()
    looked.wait()
    thread.stop()
    tell("alive:", thread.is_alive())
    jobs.put("one more")  # nothing else ends it
    thread.join()
    tell("done after it was stopped:", done)


# --- a thread that kills its parent ---------------------------------------------------------------


class ParentKiller(threading.Thread):
    """Raises its own exception in the thread that made it."""

    def __init__(self, target: Callable[[], object]) -> None:
        super().__init__(target=target)
        self.parent = threading.current_thread()

    def run(self) -> None:
        try:
            super().run()
        except Exception as failure:  # noqa: BLE001 (the parent is told)
            async_raise(self.parent.ident, type(failure))


def fail() -> None:
    raise ValueError("why")


def a_child_raises_in_its_parent_after_the_block() -> None:
    left = threading.Event()

    def late() -> None:
        left.wait()
        fail()

    def parent() -> None:
        child = ParentKiller(late)
        try:
            child.start()
        except ValueError:
            tell("handled where it belongs")
        try:
            left.set()
            child.join()
            tell("no thread was told")
        except ValueError as raised:
            tell("behind the block:", repr(raised))

    thread = threading.Thread(target=parent)
    thread.start()
    thread.join()


def a_parent_that_waits_does_not_notice() -> None:
    answer = threading.Lock()
    answer.acquire()
    told = threading.Event()
    children: list[threading.Thread] = []

    def parent() -> None:
        children.extend([ParentKiller(fail), ParentKiller(answer.acquire)])
        children[1].daemon = True
        children[1].start()
        told.set()
        answer.acquire()

    thread = threading.Thread(target=parent, daemon=True)
    thread.start()
    told.wait()
    children[0].start()
    children[0].join()
    tell("a child has failed; parent and sibling wait:", thread.is_alive(), children[1].is_alive())


# --- stopit, func_timeout, timeout_decorator ------------------------------------------------------


def import_stopit() -> Any:
    """Import stopit, which asks the removed pkg_resources for its version but needs no answer."""
    sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
    import stopit

    return stopit


def stopit_raises_after_the_block() -> None:
    stopit = import_stopit()

    class LateTimer(threading.Timer):
        """A timer whose time comes at the instant at which it is cancelled."""

        def start(self) -> None:
            pass

        def cancel(self) -> None:
            self.function()

    threading.Timer = LateTimer  # type: ignore[misc]
    try:
        with stopit.ThreadingTimeout(1000):
            tell("the block is done")
    except stopit.utils.TimeoutException as raised:
        tell("out of a block that swallows it:", type(raised).__name__)


def stopit_is_swallowed() -> None:
    stopit = import_stopit()
    with stopit.ThreadingTimeout(1000) as block:
        try:
            block.stop()  # as its timer does
        except Exception:  # noqa: BLE001 (as user code may)
            tell("handled as if it were the code's own")
        tell("goes on, with no timeout any more")


def func_timeout_leaves_the_function_running() -> None:
    from func_timeout import FunctionTimedOut, StoppableThread, func_timeout

    lock, forever, inside = threading.Lock(), threading.Lock(), threading.Event()
    forever.acquire()

    def function() -> None:
        with lock:
            inside.set()
            forever.acquire()

    def join(thread: threading.Thread, timeout: float | None = None) -> None:
        inside.wait()
        threading.Thread.join(thread, timeout)

    StoppableThread.join = join  # the timeout does not pass before the function has begun
    before = threading.active_count()
    try:
        func_timeout(0.01, function)
    except FunctionTimedOut:
        tell("timed out; threads left:", threading.active_count() > before)
        tell("held:", lock.locked())


def timeout_decorator_is_for_the_main_thread() -> None:
    from timeout_decorator import timeout

    def body() -> None:
        try:
            timeout(1000)(tell)("called")
        except ValueError as refused:
            tell(str(refused).partition(";")[0].partition(" of ")[0])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()


def timeout_decorator_ends_the_timeout_around_it() -> None:
    from timeout_decorator import timeout

    def outer() -> None:
        timeout(500)(lambda: None)()
        tell("seconds left to the outer one:", signal.getitimer(signal.ITIMER_REAL)[0])

    timeout(1000)(outer)()


def timeout_decorator_raises_after_the_call() -> None:
    from timeout_decorator import timeout

    timeout()(lambda: None)(timeout=1000)
    tell("will kill:", signal.getitimer(signal.ITIMER_REAL)[0] > 900)
    try:
        signal.raise_signal(signal.SIGALRM)  # the time has come
    except Exception as raised:  # noqa: BLE001 (shown)
        tell("after the call:", type(raised).__name__)


def timeout_decorator_is_over_before_a_generator_begins() -> None:
    from timeout_decorator import timeout

    def numbers() -> Iterator[float]:
        yield signal.getitimer(signal.ITIMER_REAL)[0]

    tell("seconds left to the generator:", *timeout(1000)(numbers)())


# --- processes, and daemon threads at exit --------------------------------------------------------


def hold(lock: Any, inside: Any) -> None:
    with lock:
        inside.set()
        signal.pause()


def get(jobs: Any, inside: Any) -> None:
    receive = jobs._recv_bytes

    def told() -> bytes:
        inside.set()
        return bytes(receive())

    jobs._recv_bytes = told
    jobs.get()


def terminate_in(body: Callable[[Any, Any], None], shared: Any, context: Any) -> None:
    inside = context.Event()
    child = context.Process(target=body, args=(shared, inside))
    child.start()
    inside.wait()
    child.terminate()
    child.join()


def a_terminated_process_leaves_a_lock_held() -> None:
    context = multiprocessing.get_context("fork")
    lock = context.Lock()
    terminate_in(hold, lock, context)
    tell("held without a holder:", not lock.acquire(block=False))


def a_terminated_process_leaves_a_queue_locked() -> None:
    context = multiprocessing.get_context("fork")
    jobs: Any = context.Queue()
    terminate_in(get, jobs, context)
    tell("every get() hangs:", not jobs._rlock.acquire(block=False))


def a_daemon_does_not_clean_up() -> None:
    ready = threading.Event()

    def body() -> None:
        try:
            ready.set()
            threading.Event().wait()
        finally:
            tell("cleaned up")

    threading.Thread(target=body, daemon=True).start()
    ready.wait()
    tell("the process ends")
    sys.exit()
