"""I20, I21, I22, I28, I32: a kill at every bytecode."""

from __future__ import annotations

import functools
import random
import sys
import threading
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

import desist
from desist import Guarded, LeaseQueue, Lock, RetryPolicy, StopPolicy, TaskState, WorkerPool
from desist._core import Seat, Task
from support import NEVER
from sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desist import Lease


# A kill may strike a finalizer that happens to run in the body, which cannot let it pass and
# reports it; a real killer sends it again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tell(figures: object) -> None:
    """What a sweep came to, for `pytest -rP`."""
    print(figures)  # noqa: T201 (that is what it is for)


def with_lock(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    with lock:
        change()


def with_lock_around_a_loop(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    with lock:
        n = 0
        while n < 3:
            n += 1
        change()


def acquire_and_finally(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    lock.acquire()
    try:
        change()
    finally:
        lock.release()


def acquire_in_try(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    got = False
    try:
        got = lock.acquire()
        change()
    finally:
        if got:
            lock.release()


def with_guard(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    with lock.guard() as guard:
        change()
        guard.check()


def guard_around_a_loop(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    with lock.guard():
        n = 0
        while n < 3:
            n += 1
        change()


def guard_released_early(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    with lock.guard() as guard:
        try:
            change()
        finally:
            guard.release()


def nested(lock: Lock, other: Lock, change: Callable[[], None]) -> None:
    with lock:
        change()
        with other:
            change()


def in_a_generator(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    def numbers() -> Iterator[int]:
        with lock:
            yield 1
            change()
            yield 2

    for _number in numbers():
        pass


def in_a_contextmanager(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    @contextmanager
    def locked() -> Iterator[None]:
        with lock:
            yield

    with locked():
        change()


def under_a_decorator(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    def locked(function: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def wrapper() -> None:
            with lock:
                function()

        return wrapper

    locked(change)()


def in_a_scope(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    with desist.cancel_scope(timeout=NEVER), lock:
        change()


def in_a_scope_that_swallows(lock: Lock, _: Lock, change: Callable[[], None]) -> None:
    try:
        with desist.move_on_after(NEVER), lock:
            change()
    except BaseException:  # noqa: BLE001 (what a victim does)
        pass


BODIES = [
    with_lock,
    with_lock_around_a_loop,
    acquire_and_finally,
    acquire_in_try,
    with_guard,
    guard_around_a_loop,
    guard_released_early,
    nested,
    in_a_generator,
    in_a_contextmanager,
    under_a_decorator,
    in_a_scope,
    in_a_scope_that_swallows,
]


class LockTrial:
    """A task takes locks and changes what they protect, in two steps."""

    def __init__(
        self, body: Callable[[Lock, Lock, Callable[[], None]], None], *, fenced: bool = False
    ) -> None:
        self.body = body
        self.fenced = fenced
        self.poisoned = self.killed = 0

    def __call__(self) -> None:
        locks = Lock(name="one", fenced=self.fenced), Lock(name="two", fenced=self.fenced)
        begun: list[int] = []
        ended: list[int] = []

        def change() -> None:
            begun.append(1)
            ended.append(1)

        task = Task("sweep")
        task.run(lambda: self.body(*locks, change))
        for lock in locks:
            assert not lock.locked()
            if lock.poisoned:
                with pytest.raises(desist.LockPoisoned):
                    lock.acquire()
                with lock.repair():
                    pass
                assert task.state is TaskState.KILLED or self.body is in_a_scope_that_swallows
                self.poisoned += 1
            assert lock.acquire(timeout=0)
            lock.release()
        # Half changed, and nobody is told: that is what poison is for.
        if len(begun) != len(ended):
            assert self.poisoned
        if task.state is TaskState.KILLED:
            self.killed += 1
        else:
            assert begun or self.body is in_a_scope_that_swallows


@pytest.mark.parametrize("fenced", [False, True], ids=["plain", "fenced"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_i20_i21_a_kill_at_any_bytecode_leaves_no_lock_held(
    body: Callable[[Lock, Lock, Callable[[], None]], None], *, fenced: bool
) -> None:
    trial = LockTrial(body, fenced=fenced)
    points = sweep(trial)
    tell(f"{body.__name__}: {points} points, {trial.killed} killed, {trial.poisoned} poisoned")
    assert points > 20
    assert trial.poisoned > 0
    if body is not in_a_scope_that_swallows:
        assert points * 0.9 - 8 <= trial.killed <= points


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_a_kill_that_a_lock_holds_off_poisons_nothing(
    body: Callable[[Lock, Lock, Callable[[], None]], None],
) -> None:
    trial = LockTrial(body)
    points = sweep(trial, defer=True)
    tell(f"{body.__name__}: {points} points, {trial.killed} killed")
    assert points > 20
    assert trial.killed > 0 or body is in_a_scope_that_swallows
    assert trial.poisoned == 0


# --- values ---------------------------------------------------------------------------------------


def one_more(value: list[int], at: int) -> None:
    value[at] += 1


def one_block(guarded: Guarded[list[int]]) -> None:
    with guarded.lock() as held:
        one_more(held.value, 0)
        one_more(held.value, 1)


def a_block_around_a_loop(guarded: Guarded[list[int]]) -> None:
    with guarded.lock() as held:
        at = 0
        while at < 2:
            held.value[at] += 1
            at += 1


def a_value_in_its_place(guarded: Guarded[list[int]]) -> None:
    def replace(*value: int) -> None:
        held.value = list(value)

    with guarded.lock() as held:
        replace(1, 0)
        replace(1, 1)


def a_block_in_a_generator(guarded: Guarded[list[int]]) -> None:
    def places() -> Iterator[int]:
        with guarded.lock() as held:
            for at in range(2):
                one_more(held.value, at)
                yield at

    for _at in places():
        pass


def a_block_that_fails(guarded: Guarded[list[int]]) -> None:
    with suppress(ZeroDivisionError), guarded.lock() as held:
        one_more(held.value, 0)
        one_more(held.value, 1 // 0)
    for _ in range(3):
        pass


VALUES = [
    one_block,
    a_block_around_a_loop,
    a_value_in_its_place,
    a_block_in_a_generator,
    a_block_that_fails,
]


def copied(value: list[int]) -> list[int]:
    saved = []
    for item in value:  # in Python, so that it can be struck
        saved.append(item)  # noqa: PERF402
    return saved


@pytest.mark.parametrize("defer", [False, True], ids=["struck in locks", "locks hold it off"])
@pytest.mark.parametrize("rollback", [None, copied], ids=["no way back", "way back"])
@pytest.mark.parametrize("body", VALUES, ids=lambda body: body.__name__)
def test_i20_i21_a_value_is_whole_or_poisoned_after_a_kill_at_any_bytecode(
    body: Callable[[Guarded[list[int]]], None],
    rollback: Callable[[list[int]], list[int]] | None,
    *,
    defer: bool,
) -> None:
    counts = {"killed": 0, "poisoned": 0, "changed": 0}

    def trial() -> None:
        guarded = Guarded([0, 0], rollback=rollback)
        task = Task("sweep")
        task.run(lambda: body(guarded))
        assert not guarded.locked()
        if guarded.poisoned:
            counts["poisoned"] += 1
            with guarded.repair() as held:
                held.value = [0, 0]
        with guarded.lock() as held:
            failed = body is a_block_that_fails and rollback is None
            assert held.value in ([0, 0], [1, 0] if failed else [1, 1])
            counts["changed"] += held.value != [0, 0]
        counts["killed"] += task.state is TaskState.KILLED

    points = sweep(trial, defer=defer)
    tell(f"{body.__name__}: {points} points, {counts}")
    assert points > 40
    if body is not a_block_that_fails or not defer:  # where the error goes first
        assert points * 0.9 - 8 <= counts["killed"] <= points
    if rollback is None and not defer:
        assert counts["poisoned"] > 5
    else:
        assert counts["poisoned"] == 0


# --- masks ----------------------------------------------------------------------------------------


def one_mask(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    with desist.defer_kill(NEVER):
        first()
        second()


def a_mask_around_a_loop(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    with desist.defer_kill(NEVER):
        first()
        n = 0
        while n < 3:
            n += 1
        second()


def a_mask_in_a_mask(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    with desist.defer_kill(NEVER):
        with desist.defer_kill(NEVER):
            first()
        second()


def a_mask_in_a_generator(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    def steps() -> Iterator[int]:
        with desist.defer_kill(NEVER):
            first()
            yield 1
            second()
            yield 2

    for _number in steps():
        pass


def a_mask_in_a_lock(first: Callable[[], None], second: Callable[[], None], lock: Lock) -> None:
    with lock, desist.defer_kill(NEVER):
        first()
        second()


def a_mask_around_a_lock(first: Callable[[], None], second: Callable[[], None], lock: Lock) -> None:
    with desist.defer_kill(NEVER), lock:
        first()
        second()


MASKED = [
    one_mask,
    a_mask_around_a_loop,
    a_mask_in_a_mask,
    a_mask_in_a_generator,
    a_mask_in_a_lock,
    a_mask_around_a_lock,
]


@pytest.mark.parametrize("defer", [False, True], ids=["struck in locks", "locks hold it off"])
@pytest.mark.parametrize("body", MASKED, ids=lambda body: body.__name__)
def test_i24_what_is_masked_happens_whole_or_not_at_all_and_a_kill_arrives(
    body: Callable[[Callable[[], None], Callable[[], None], Lock], None], *, defer: bool
) -> None:
    counts = {"killed": 0, "whole": 0}

    def trial() -> None:
        steps: list[str] = []
        lock = Lock()

        def run() -> None:
            body(lambda: steps.append("first"), lambda: steps.append("second"), lock)
            for _ in range(10):
                pass  # the kill may be held off until behind the block

        task = Task("sweep")
        task.run(run)
        assert steps in ([], ["first", "second"])
        assert not lock.locked()
        assert not lock.poisoned or not defer
        if body is a_mask_around_a_lock:
            assert not lock.poisoned
        counts["killed"] += task.state is TaskState.KILLED
        counts["whole"] += bool(steps)

    points = sweep(trial, defer=defer)
    tell(f"{body.__name__}: {points} points, {counts}")
    assert points > 40
    # The last few are too late for CPython to look once more.
    assert points - 8 <= counts["killed"] <= points
    assert 10 < counts["whole"] < points


# --- work -----------------------------------------------------------------------------------------


class WorkTrial:
    """A seat works through a queue of two items, in one thread, and is killed somewhere."""

    def __init__(self, *, commits: bool) -> None:
        self.commits = commits
        self.again = 0

    def __call__(self) -> None:
        queue: LeaseQueue[str] = LeaseQueue(retry=RetryPolicy(max_attempts=3))
        written: list[str] = []
        starts: list[str] = []
        lock = Lock(on_kill="release")
        source = desist.CancelSource()
        for item in "ab":
            queue.put(item)

        def work(lease: Lease[str]) -> None:
            starts.append(lease.item)
            with lock:
                pass
            if self.commits:
                with lease.commit():
                    written.append(lease.item)
                    lease.ack()
            else:
                written.append(lease.item)
            assert sum(queue.counts().values()) == 2

        def finish() -> None:
            queue._drain()
            source.cancel("no more work")

        stopper = threading.Thread(target=finish)
        stopper.start()
        Seat(queue, source.token).work("worker", work)
        stopper.join()
        assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 2, "dead": 0}
        assert not lock.locked()
        if self.commits:
            assert sorted(written) == ["a", "b"]
        else:
            assert set(written) == {"a", "b"}
        self.again += len(starts) - 2


@pytest.mark.parametrize("defer", [False, True], ids=["struck in locks", "locks hold it off"])
def test_a_commit_that_is_killed_anywhere_happens_once(*, defer: bool) -> None:
    trial = WorkTrial(commits=True)
    points = sweep(trial, defer=defer)
    tell(f"commit: {points} points, {trial.again} leased again")
    assert points > 40
    assert 10 < trial.again < points


def test_an_item_whose_worker_is_killed_anywhere_is_done_in_the_end() -> None:
    trial = WorkTrial(commits=False)
    points = sweep(trial)
    tell(f"handler: {points} points, {trial.again} leased again")
    assert points > 40
    assert 10 < trial.again < points


def test_a_pool_goes_on_after_a_kill_at_any_bytecode_of_its_handler() -> None:
    killed = 0

    def trial() -> None:
        nonlocal killed
        lock = Lock()
        starts: list[int] = []

        def handler(lease: Lease[int]) -> int:
            starts.append(lease.item)
            try:
                with lock:
                    return lease.item * 2
            except desist.LockPoisoned:
                with lock.repair():
                    return lease.item * 2

        with WorkerPool(handler, workers=1) as pool:
            first, second = pool.submit(1), pool.submit(2)
            assert (first.result(), second.result()) == (2, 4)
            assert pool.workers_alive() == 1
        assert not lock.locked()
        assert pool.queue.counts()["done"] == 2
        killed += len(starts) > 2

    points = sweep(trial)
    tell(f"pool: {points} points, {killed} started again")
    assert points > 40
    assert killed > 10


# --- real killers ---------------------------------------------------------------------------------


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

    dice = random.Random(1)
    rungs = dict.fromkeys(desist.Outcome, 0)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with WorkerPool(handler, workers=4, queue=queue, policy=policy) as pool:
            for item in range(items):
                pool.submit(item)
            while kills:
                report = pool.kill_worker(dice.randrange(4))
                assert report.outcome is not None
                rungs[report.outcome] += 1
                if report.outcome is not desist.Outcome.ALREADY_DONE:
                    kills -= 1
                    starts.get()
            enough.set()
            assert pool.drain(NEVER)
            assert pool.workers_alive() == 4
            # They go on with other work (I22).
            later = [pool.submit(item) for item in range(items, items + 8)]
            assert [future.result(NEVER) for future in later] == [None] * 8
    finally:
        sys.setswitchinterval(before)
    tell(rungs)
    assert sorted(effects) == list(range(items + 8))
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": items + 8, "dead": 0}
    assert rungs[desist.Outcome.ASYNC_EXC] > 50
    assert not lock.locked()
