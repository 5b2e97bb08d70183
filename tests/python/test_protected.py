"""I42: no kill leaves a lock of the interpreter or of the standard library held."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.thread
import contextlib
import gc
import importlib
import io
import itertools
import logging
import os
import queue
import random
import subprocess
import sys
import threading
import time
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import KillOutcome, StopPolicy, TaskState
from desist._core import Task
from desist._sweep import Sweep
from support import HAS_GIL, NEVER, Victim, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXACT = sys.version_info >= (3, 12)
"""From 3.12 on, `Killed` makes the call of an `__exit__` at whose beginning it is raised."""


def is_free(lock: Any) -> bool:
    """Is it held by no thread? Asked by a thread that does not hold it."""
    if not lock.acquire(blocking=False):
        return False
    lock.release()
    return True


# --- code that uses the standard library's locks --------------------------------------------------


class Subject:
    """Some objects with locks of their own."""

    def use(self) -> None:
        """Use them."""

    def locks(self) -> list[Any]:
        """Return their locks."""
        return []

    def check(self) -> None:
        """Fail if any is held, or does not work any more."""
        assert all(map(is_free, self.locks()))

    def close(self) -> None:
        """End what was started."""


class OfQueues(Subject):
    def __init__(self) -> None:
        self.queues: list[queue.Queue[int]] = [queue.Queue(), queue.LifoQueue()]

    def use(self) -> None:
        for each in self.queues:
            each.put(1)
            each.get()
            each.task_done()

    def locks(self) -> list[Any]:
        return [each.mutex for each in self.queues]


class OfEvents(Subject):
    def __init__(self) -> None:
        self.event = threading.Event()

    def use(self) -> None:
        self.event.set()
        self.event.wait()
        self.event.clear()

    def locks(self) -> list[Any]:
        return [self.event._cond._lock]  # type: ignore[attr-defined]


class OfConditions(Subject):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.condition = threading.Condition(self.lock)
        self.number = 0

    def use(self) -> None:
        with self.condition:
            self.number += 1
        with self.condition:
            self.condition.notify_all()
            self.condition.wait(0)

    def locks(self) -> list[Any]:
        return [self.lock]


class OfSemaphores(Subject):
    def __init__(self) -> None:
        self.semaphore = threading.BoundedSemaphore(2)
        self.number = 0

    def use(self) -> None:
        with self.semaphore:
            self.number += 1
            with self.semaphore:
                self.number += 1

    def locks(self) -> list[Any]:
        return [self.semaphore._cond._lock]  # type: ignore[attr-defined]

    def check(self) -> None:
        super().check()
        assert self.semaphore._value == 2


class OfLogging(Subject):
    def __init__(self) -> None:
        self.handler = logging.StreamHandler(io.StringIO())
        self.logger = logging.Logger("of the subject")  # noqa: LOG001 (each subject has its own)
        self.logger.addHandler(self.handler)

    def use(self) -> None:
        self.logger.warning("of %s", self)
        logging.getLogger("of the subject").setLevel(logging.INFO)

    def locks(self) -> list[Any]:
        return [self.handler.lock, logging._lock]  # type: ignore[attr-defined]


class OfFutures(Subject):
    def __init__(self) -> None:
        self.executor = concurrent.futures.ThreadPoolExecutor(1)
        self.executor.submit(int).result()

    def use(self) -> None:
        self.executor.submit(int).result()

    def locks(self) -> list[Any]:
        of_module = concurrent.futures.thread._global_shutdown_lock
        return [self.executor._shutdown_lock, of_module]

    def check(self) -> None:
        super().check()
        assert self.executor.submit(int, "7").result(NEVER) == 7

    def close(self) -> None:
        self.executor.shutdown()


class OfImports(Subject):
    name = "module_of_the_subject"

    def use(self) -> None:
        sys.modules.pop(self.name, None)
        importlib.import_module(self.name)

    def check(self) -> None:
        thread = threading.Thread(target=importlib.import_module, args=(self.name,), daemon=True)
        thread.start()
        thread.join(NEVER)


class OfContexts(Subject):
    def __init__(self) -> None:
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self.lock:
            yield

    def use(self) -> None:
        with self.held():
            pass
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lock)

    def locks(self) -> list[Any]:
        return [self.lock]


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "queue": OfQueues,
    "event": OfEvents,
    "condition": OfConditions,
    "semaphore": OfSemaphores,
    "logging": OfLogging,
    "concurrent.futures": OfFutures,
    "import": OfImports,
    "contextlib": OfContexts,
}

subjects = pytest.mark.parametrize("make", SUBJECTS.values(), ids=SUBJECTS)


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{OfImports.name}.py").write_text("number = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(OfImports.name, None)


# --- at every bytecode ----------------------------------------------------------------------------

RUNGS = {"async_exc": (None, False), "trace": (None, True), "kill_after": (0, False)}


def used(subject: Subject) -> None:
    subject.use()


def checked(subject: Subject) -> None:
    subject.check()


def used_in_a_block(subject: Subject) -> None:
    with desist.move_on_after(NEVER, kill_after=0):
        subject.use()


@subjects
@pytest.mark.parametrize(("block", "trace"), RUNGS.values(), ids=RUNGS)
def test_i42_a_kill_at_any_bytecode_leaves_no_lock_of_the_standard_library_held(
    make: Callable[[], Subject], block: int | None, trace: bool
) -> None:
    if not EXACT and not trace and make in {OfConditions, OfSemaphores, OfContexts}:
        pytest.skip("a sweep posts where no other thread can: it would have to hold the GIL")
    made: list[Subject] = []

    def setup() -> Subject:
        made.append(make())
        return made[-1]

    use = used if block is None else used_in_a_block
    sweep = Sweep(
        use,
        checked,
        setup,
        "fn",
        None,
        20_000,
        NEVER,
        defer=True,
        block=block,
        trace=trace,
    )
    try:
        report = sweep.run()
    finally:
        for subject in made:
            subject.close()
    rung = "kill_after" if block is not None else "trace" if trace else "async_exc"
    tell(f"protected: {make.__name__}, {rung}", report)
    assert report.points > 20
    assert report.missed == 0
    # Before 3.12 tracing raises at lines, of which the subjects have few.
    assert block is not None or report.stopped > 2


# --- at random ------------------------------------------------------------------------------------

POLICIES = {
    "async_exc": StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=NEVER),
    "trace": StopPolicy(cooperative=0, at_wait=0, async_exc=0, trace=NEVER, defer=NEVER),
}


def in_a_loop(subject: Subject, begun: Callable[[], None]) -> None:
    begun()
    while True:
        subject.use()


def pause(rng: random.Random) -> None:
    """Let the victim run for up to a millisecond."""
    end = time.perf_counter() + rng.random() * 1e-3
    while time.perf_counter() < end:
        os.sched_yield()


@subjects
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(
    "kills", [20, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_i42_random_kills_leave_no_lock_of_the_standard_library_held(
    make: Callable[[], Subject], policy: StopPolicy, kills: int
) -> None:
    rng, subject = random.Random(1), make()
    with contextlib.closing(subject):
        for _ in range(kills):
            with Victim(partial(in_a_loop, subject)) as victim:
                pause(rng)
                report = victim.kill(policy=policy)
            assert victim.state is TaskState.KILLED
            assert report.interrupted == []
            subject.check()


@subjects
@pytest.mark.parametrize(
    "kills", [3, pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_i42_blocks_with_kill_after_leave_no_lock_of_the_standard_library_held(
    make: Callable[[], Subject], kills: int
) -> None:
    rng, subject = random.Random(1), make()

    def body() -> None:
        for _ in range(kills):
            with desist.move_on_after(rng.random() * 1e-3, kill_after=0):
                in_a_loop(subject, lambda: None)
            subject.check()
            ended.append(1)

    ended: list[int] = []
    with contextlib.closing(subject):
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
    assert len(ended) == kills


# A kill that is raised while a generator is dropped goes to sys.unraisablehook, and comes again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the killed code's connection
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(
    "kills", [10, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_i42_random_kills_leave_a_session_of_requests_usable(
    policy: StopPolicy, kills: int, server: str
) -> None:
    requests = pytest.importorskip("requests")
    desist.protect_modules("urllib3")
    rng = random.Random(1)
    victim: Victim[None] | None = None

    def get(begun: Callable[[], None]) -> None:
        begun()
        while True:
            session.get(server, timeout=NEVER)

    with requests.Session() as session:
        adapter = session.get_adapter(server)
        assert session.get(server, timeout=NEVER).text == "here"
        pools = adapter.poolmanager.pools
        for _ in range(kills):
            with Victim(get) as victim:
                pause(rng)
                report = victim.kill(policy=policy)
            assert report.interrupted == []
            assert is_free(pools.lock)
            assert all(is_free(pools[key].pool.mutex) for key in pools.keys())  # noqa: SIM118
        assert session.get(server, timeout=NEVER).text == "here"
    del victim
    gc.collect()  # here, where the warning is ignored


SERVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        pass

server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def server() -> Iterator[str]:
    """Run a web server in a process of its own."""
    line = [sys.executable, "-c", SERVER]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        process.kill()


# --- modules of the user --------------------------------------------------------------------------


def module(name: str, source: str) -> Any:
    """Make a module that is not imported."""
    made = types.ModuleType(name)
    exec(source, vars(made))
    return made


BUSY = """
def busy(ready):
    ready()
    while not over:
        pass
    return 1
over = False
"""
QUICK = StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=0.05)


@pytest.mark.parametrize("name", ["protected_one", "protected_package.inner.module"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_kill_waits_until_a_module_of_the_user_is_left(name: str, policy: StopPolicy) -> None:
    desist.protect_modules("protected_one", "protected_package")
    kill_in(module(name, BUSY), policy)


@pytest.mark.skipif(not HAS_GIL, reason="without the GIL it waits for all of the policy's defer")
@pytest.mark.usefixtures("no_tool_is_free")
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_kill_waits_for_that_without_a_free_tool_of_monitoring(policy: StopPolicy) -> None:
    desist.protect_modules("protected_one")
    kill_in(module("protected_one", BUSY), policy)


def kill_in(own: Any, policy: StopPolicy) -> None:
    steps = []

    def body(ready: Callable[[], None]) -> None:
        steps.append(own.busy(ready))
        for _ in itertools.count():
            pass

    with Victim(body) as victim:
        future = victim.kill_soon(policy=policy)
        with pytest.raises(TimeoutError):
            future.result(0.05)
        own.over = True
        report = future.result(NEVER)
    assert steps in ([1], [])
    assert report.interrupted == []
    assert victim.state is TaskState.KILLED


def test_a_module_defers_a_kill_no_longer_than_the_policy_says() -> None:
    desist.protect_modules("protected_one")
    own = module("protected_one", BUSY)
    with Victim(own.busy) as victim:
        report = victim.kill(policy=QUICK)
    assert report.outcome is KillOutcome.ASYNC_EXC
    assert report.interrupted == ["protected_one"]
    assert report.elapsed >= QUICK.defer


@pytest.mark.parametrize("name", ["unprotected", "protected_on", "protected_one_more", ""])
def test_other_modules_defer_nothing(name: str) -> None:
    desist.protect_modules("protected_one")
    own = module(name, BUSY)
    with Victim(own.busy) as victim:
        assert victim.kill(policy=POLICIES["async_exc"]).interrupted == []


def test_code_that_is_only_called_by_such_a_module_is_killed_at_once() -> None:
    @contextlib.contextmanager
    def nothing() -> Iterator[None]:
        yield

    @nothing()
    def decorated(ready: Callable[[], None]) -> None:
        threading.Thread(target=ready).run()
        while True:
            pass

    def body(ready: Callable[[], None]) -> None:
        threading.Thread(target=decorated, args=(ready,)).run()

    with Victim(body) as victim:
        assert victim.kill(policy=POLICIES["async_exc"]).interrupted == []


@pytest.mark.parametrize("name", ["", ".relative", "a..b", "a."])
def test_the_name_of_no_module_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"named as in sys\.modules"):
        desist.protect_modules("good", name)


def test_a_module_is_named_by_a_string() -> None:
    with pytest.raises(TypeError):
        desist.protect_modules(threading)  # type: ignore[arg-type]


# --- where tracing raises -------------------------------------------------------------------------


def test_i42_tracing_never_skips_the_end_of_a_with_block() -> None:
    class OfLocks(Subject):
        def __init__(self) -> None:
            self.all = [threading.Lock() for _ in range(4)]

        def use(self) -> None:
            first, second, third, fourth = self.all
            with first:
                n = 0
                while n < 2:
                    n += 1
                while True:
                    if n:
                        break
            for _ in range(2):
                with second, third:
                    continue
            with contextlib.suppress(ValueError), fourth:
                raise ValueError
            self.returned()

        def returned(self) -> object:
            for lock in self.all:
                with lock:
                    return [lock]
            return None

        def locks(self) -> list[Any]:
            return self.all

    sweep = Sweep(
        OfLocks.use, OfLocks.check, OfLocks, "fn", None, 10_000, NEVER, defer=True, trace=True
    )
    report = sweep.run()
    tell("protected: tracing through `with` blocks", report)
    assert report.stopped > 20
    assert report.missed == 0


def swallowing() -> None:
    while True:
        try:
            while True:
                sum(range(9))
        except BaseException:  # noqa: BLE001, PERF203 (as a victim does)
            pass


def entries(raised: BaseException | None) -> Iterator[types.TracebackType]:
    while raised is not None:
        entry = raised.__traceback__
        while entry is not None:
            yield entry
            entry = entry.tb_next
        raised = raised.__cause__ or raised.__context__


def test_a_kill_leaves_no_traceback_entry_without_a_line() -> None:
    def body() -> None:
        begun.set()
        swallowing()

    raised: list[BaseException | None] = []
    for _ in range(20):
        task, begun = Task("swallowing"), threading.Event()
        settle = lambda _, killed: raised.append(killed)  # noqa: E731
        thread = threading.Thread(target=task.run, args=(body, settle))
        thread.start()
        begun.wait()
        task.kill(policy=POLICIES["trace"])
        thread.join()
        assert raised[-1] is not None
        assert None not in [entry.tb_lineno for entry in entries(raised[-1])]


def test_a_block_with_kill_after_leaves_no_traceback_entry_without_a_line() -> None:
    def body() -> None:
        try:
            with desist.cancel_scope(timeout=0.001, kill_after=0):
                swallowing()
        except desist.DeadlineExceeded as error:
            raised.append(error)

    raised: list[BaseException] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert None not in [entry.tb_lineno for entry in entries(raised[0])]
