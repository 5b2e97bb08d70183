"""I22, I28, I32: a kill at every bytecode of the code that works on items."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import threading
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import FileQueue, LeaseQueue, Lock, RetryPolicy, StopPolicy, WorkerPool
from desist._core import PoolMetrics, WorkerSlot
from desist._ports import port_of
from desist.testing import sweep_cancels, sweep_kills
from support import NEVER, drained, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist import Lease
    from desist.testing import SweepReport


class Letter(str):
    """Is decoded by code that takes some bytecodes."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return decode, (str(self),)


def decode(letter: str) -> str:
    letters = [one for one in "abc" if one == letter]
    return letters[0]


class Office:
    """A worker works through a queue of two items, and is killed somewhere."""

    items: tuple[str, ...] = ("a", "b")

    def __init__(self) -> None:
        self.queue = self.open()
        self.written: list[str] = []
        self.starts: list[str] = []
        self.lock = Lock(on_kill="release")
        for item in self.items:
            self.queue.put(item)

    def open(self) -> LeaseQueue[str] | FileQueue[str]:
        return LeaseQueue(retry=RetryPolicy(max_attempts=3))

    def work(self, handler: Callable[[Lease[str]], object]) -> None:
        with desist.CancelSource() as source:

            def finish() -> None:
                drained(self.queue, None)
                source.cancel("no more work")

            stopper = threading.Thread(target=finish)
            stopper.start()
            port, metrics = port_of(self.queue), PoolMetrics()
            seat = WorkerSlot("worker", port, source.token, metrics, None, StopPolicy(), print)
            seat.work(handler, print)
            stopper.join()

    def begin(self, lease: Lease[str]) -> None:
        self.starts.append(lease.item)
        with self.lock:
            pass

    def commit(self, lease: Lease[str]) -> None:
        self.begin(lease)
        with lease.commit():
            self.written.append(lease.item)
            lease.ack()
        assert sum(self.queue.counts().values()) == 2

    def write(self, lease: Lease[str]) -> None:
        self.begin(lease)
        self.written.append(lease.item)

    def check(self) -> None:
        assert self.queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 2, "dead": 0}
        assert not self.lock.locked()
        assert set(self.written) == {"a", "b"}

    def check_written_once(self) -> None:
        self.check()
        assert len(self.written) == 2


class FileOffice(Office):
    """The same, with the queue in a file."""

    def open(self) -> FileQueue[str]:
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        return FileQueue(f"{folder}/jobs.db", retry=RetryPolicy(max_attempts=3))


class DecodingOffice(FileOffice):
    """The same, with items whose decoding is killed, too."""

    items = Letter("a"), Letter("b")


offices = pytest.mark.parametrize("kind", [Office, FileOffice, DecodingOffice])


@offices
@pytest.mark.parametrize("defer", [False, True], ids=["killed in locks", "locks defer it"])
def test_i32_a_commit_that_is_killed_anywhere_happens_once(
    kind: type[Office], *, defer: bool
) -> None:
    report = sweep_kills(
        lambda office: office.work(office.commit),
        Office.check_written_once,
        setup=kind,
        victims="started",
        defer=defer,
    )
    tell(f"work: commit, {kind.__name__}" + ", deferred" * defer, report)
    assert report.points > 40
    assert report.stopped > 10


@offices
def test_i32_a_commit_that_is_cancelled_anywhere_happens_once(kind: type[Office]) -> None:
    report = sweep_cancels(
        lambda office: office.work(office.commit),
        Office.check_written_once,
        setup=kind,
        victims="started",
    )
    tell(f"work: commit, {kind.__name__}, cancelled", report)
    assert report.stopped > 10


@offices
def test_i28_an_item_whose_worker_is_killed_anywhere_is_done_in_the_end(
    kind: type[Office],
) -> None:
    report = sweep_kills(
        lambda office: office.work(office.write), Office.check, setup=kind, victims="started"
    )
    tell(f"work: handler, {kind.__name__}", report)
    assert report.points > 30
    assert report.stopped > 10


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("sweep", [sweep_kills, sweep_cancels])
def test_i22_a_pool_goes_on_after_a_stop_at_any_bytecode_of_its_handler(
    sweep: Callable[..., SweepReport], workers: int
) -> None:
    def use_a_pool(lock: Lock) -> None:
        def handler(lease: Lease[int]) -> int:
            try:
                with lock:
                    return lease.item * 2
            except desist.LockPoisoned:
                with lock.repair():
                    return lease.item * 2

        with WorkerPool(handler, workers=workers) as pool:
            futures = [pool.submit(item) for item in range(workers + 1)]
            assert [future.result() for future in futures] == [2 * n for n in range(workers + 1)]
            assert pool.workers_alive() == workers
        assert pool.queue.counts()["done"] == workers + 1

    report = sweep(use_a_pool, lambda lock: not lock.locked(), setup=Lock, victims="started")
    tell(f"work: pool of {workers}, {sweep.__name__}", report)
    assert report.points > 25
    assert report.stopped > 5


# --- random kills ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_random_kills_lose_no_item_and_no_worker(kills: int) -> None:
    queue: LeaseQueue[int] = LeaseQueue(retry=RetryPolicy(max_attempts=1000))
    policy = StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=0)
    lock = Lock(on_kill="release")
    items = kills // 2  # each is worth four kills
    effects: list[int] = []
    starts: SimpleQueue[int] = SimpleQueue()
    enough = threading.Event()

    def handler(lease: Lease[int]) -> None:
        starts.put(lease.item)
        while not enough.is_set() and lease.attempt % 5:  # worth a kill
            for _ in range(2000):
                pass
            with lock:
                for _ in range(200):
                    pass
        with lease.commit():
            effects.append(lease.item)
            lease.ack()

    rng = random.Random(1)
    rungs = dict.fromkeys(desist.KillOutcome, 0)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with WorkerPool(handler, workers=4, queue=queue, policy=policy) as pool:
            for item in range(items):
                pool.submit(item)
            while kills:
                report = pool.workers[rng.randrange(4)].kill()
                assert report.outcome is not None
                rungs[report.outcome] += 1
                if report.outcome is not desist.KillOutcome.ALREADY_DONE:
                    kills -= 1
                    starts.get()
            enough.set()
            assert pool.drain(NEVER)
            assert pool.workers_alive() == 4
            # The workers go on with other items (I22).
            later = [pool.submit(item) for item in range(items, items + 8)]
            assert [future.result(NEVER) for future in later] == [None] * 8
    finally:
        sys.setswitchinterval(before)
    assert sorted(effects) == list(range(items + 8))
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": items + 8, "dead": 0}
    assert rungs[desist.KillOutcome.ASYNC_EXC] > 50
    assert not lock.locked()
