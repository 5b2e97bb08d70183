"""Every primitive, cancelled at every wait: I11, I13, I14, and nothing left behind.

A round has several threads that use one primitive, each in blocks that end after a random time or
are cancelled by the others. In simulated time those ends fall on every wait and, as all times are
small whole numbers, on the same instant as the grant that the wait is for; the seed also decides
which thread runs first. In real time the same rounds run under load. A round that hangs is a
deadlock in the first case, and ends the run by its bound in the second.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from contextlib import suppress
from queue import Empty, Full
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import testing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS = 4
STEPS = 4
BOUND = 30.0
"""Seconds that a round under load may take."""


class Round:
    """Threads that run `step`s, and are cancelled in them."""

    def __init__(self, seed: int, unit: float) -> None:
        self.rng = random.Random(seed)
        self.unit = unit
        self.blocks: list[desist.CancelScope] = []
        self.done: list[str] = []

    def pause(self, rng: random.Random) -> None:
        desist.sleep(rng.randrange(3) * self.unit)

    def run(self, subject: Subject) -> None:
        seeds = [self.rng.random() for _ in range(THREADS)]
        threads = [
            desist.Thread(target=self.work, args=(subject, number, seed))
            for number, seed in enumerate(seeds)
        ]
        for thread in threads:
            thread.start()
        for _ in range(STEPS):
            self.pause(self.rng)
            for block in self.blocks[-THREADS:]:
                if self.rng.random() < 0.3:
                    block.cancel("at random")
        subject.finish()
        for thread in threads:
            thread.join(BOUND)
            assert not thread.is_alive(), "the round outlives its bound"
            assert thread.state is desist.TaskState.DONE, thread.state
        subject.check(Counter(self.done))

    def work(self, subject: Subject, number: int, seed: float) -> None:
        rng = random.Random(seed)
        for step in range(STEPS):
            with desist.move_on_after(rng.randrange(1, 5) * self.unit) as block:
                self.blocks.append(block)
                subject.step(self, rng, number * STEPS + step)


class Subject:
    """The primitive of a round, and the check of its state afterwards."""

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Let the remaining waiters go on; there are no more cancels."""

    def check(self, done: Counter[str]) -> None:
        raise NotImplementedError


class Locked(Subject):
    """At most `limit` threads are inside, and nothing is held afterwards."""

    def __init__(self, make: Callable[[], Any], room: int = 1) -> None:
        self.lock = make()
        self.room = room
        self.inside: list[int] = []  # append() and pop() are atomic, += is not

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        if number % 2:
            with self.lock:
                self.use(this, rng)
        elif self.lock.acquire(timeout=rng.randrange(3) * this.unit):
            try:
                self.use(this, rng)
            finally:
                self.lock.release()

    def use(self, this: Round, rng: random.Random) -> None:
        self.inside.append(1)
        try:
            assert len(self.inside) <= self.room
            this.pause(rng)
        finally:
            self.inside.pop()

    def check(self, done: Counter[str]) -> None:
        del done
        assert not self.inside
        for _ in range(self.room):
            assert self.lock.acquire(blocking=False)
        assert self.room == 1 or not self.lock.acquire(blocking=False)


class Reentrant(Locked):
    def use(self, this: Round, rng: random.Random) -> None:
        with self.lock:
            super().use(this, rng)

    def check(self, done: Counter[str]) -> None:
        del done
        assert not self.inside
        assert not self.lock.locked()


class Waited(Subject):
    """An event: every waiter goes on once it is set."""

    def __init__(self) -> None:
        self.event = desist.Event()

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        del this
        if number % 3 == 0:
            self.event.set()
            self.event.clear()
        elif rng.random() < 0.5:
            self.event.wait()
        else:
            desist.wait_any(self.event)

    def finish(self) -> None:
        self.event.set()

    def check(self, done: Counter[str]) -> None:
        del done
        self.event.set()
        assert self.event.wait(0)


class Notified(Subject):
    """A condition: a notify wakes a waiter if there is one; the lock is held when it should be."""

    def __init__(self) -> None:
        self.condition = desist.Condition()
        self.ready = self.taken = 0

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        with self.condition:
            if number % 2:
                self.ready += 1
                self.condition.notify()
                return
            try:
                self.condition.wait_for(lambda: self.ready, rng.choice([None, this.unit]))
            finally:
                assert self.condition._is_owned()
            if self.ready:
                self.ready -= 1
                self.taken += 1
                this.done.append("taken")

    def check(self, done: Counter[str]) -> None:
        assert done["taken"] == self.taken
        assert not self.condition.locked()
        assert ", 0)>" in repr(self.condition), "a waiter is left in the queue"


class Met(Subject):
    """A barrier: all threads of a round pass, or none."""

    PARTIES = 2

    def __init__(self) -> None:
        self.barrier = desist.Barrier(self.PARTIES)

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        del rng, number
        this.done.append(f"as {self.barrier.wait()}")

    def check(self, done: Counter[str]) -> None:
        assert done["as 0"] == done["as 1"]
        assert not self.barrier.broken
        assert self.barrier.n_waiting == 0


class Passed(Subject):
    """A queue: the items put are those got and those still queued, each once."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.queue = make()
        self.put: list[int] = []
        self.got: list[int] = []

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        timeout = rng.choice([None, this.unit])
        try:
            if number % 2:
                self.queue.put(number, timeout=timeout)
                self.put.append(number)
            elif rng.random() < 0.5:
                self.got.append(self.queue.get(timeout=timeout))
            else:
                found = desist.wait_any(self.queue.get_op(), timeout=timeout)
                if found is not None:
                    self.got.append(found[1])
        except (Empty, Full):
            pass

    def check(self, done: Counter[str]) -> None:
        del done
        rest = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        assert sorted(self.got + rest) == sorted(self.put)
        assert self.queue.empty()


class OneOfThree(Subject):
    """wait_any: operations that are not performed leave no trace (I14)."""

    def __init__(self) -> None:
        self.queue: desist.Queue[int] = desist.Queue(1)
        self.lock = desist.Lock()
        self.permits = desist.Semaphore(1)
        self.put: list[int] = []
        self.got: list[int] = []

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        operations: list[desist.Op[Any]] = [
            self.lock.acquire_op(),
            self.queue.get_op(),
            self.permits.acquire_op(),
            self.queue.put_op(number),
            desist.Op.after(3 * this.unit),
        ]
        chosen = rng.sample(range(len(operations)), 3)
        done = desist.wait_any(*(operations[at] for at in chosen), timeout=2 * this.unit)
        if done is None:
            return
        which = chosen[done[0]]
        if which == 0:
            try:
                this.pause(rng)
            finally:
                self.lock.release()
        elif which == 1:
            self.got.append(done[1])
        elif which == 2:
            try:
                this.pause(rng)
            finally:
                self.permits.release()
        elif which == 3:
            self.put.append(number)

    def check(self, done: Counter[str]) -> None:
        del done
        rest = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        assert sorted(self.got + rest) == sorted(self.put)
        assert not self.lock.locked()
        assert self.permits._value == 1


class Piped(Subject):
    """A descriptor: the bytes written are those read and those still in the pipe."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.written: list[int] = []
        self.read: list[int] = []

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        if number % 2:
            desist.wait_writable(self.writer)
            self.written.append(os.write(self.writer, b"x"))
        elif desist.wait_readable(self.reader, timeout=rng.choice([None, this.unit])):
            with suppress(BlockingIOError):  # another thread was faster
                self.read.append(len(os.read(self.reader, 1)))

    def check(self, done: Counter[str]) -> None:
        del done
        os.close(self.writer)
        rest = len(os.read(self.reader, 1000))
        os.close(self.reader)
        assert sum(self.read) + rest == sum(self.written)


class Joined(Subject):
    """Waits for a token, and for a thread."""

    def __init__(self) -> None:
        self.source = desist.CancelSource()
        self.thread = desist.Thread(target=self.source.token.wait)
        self.thread.start()

    def step(self, this: Round, rng: random.Random, number: int) -> None:
        if rng.random() < 0.3:
            self.thread.join(this.unit)
        elif number % 2:
            desist.wait_any(self.thread, timeout=this.unit)
        else:
            self.source.token.wait()

    def finish(self) -> None:
        self.source.cancel()

    def check(self, done: Counter[str]) -> None:
        del done
        self.thread.join()
        assert not self.thread.is_alive()


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "Lock": lambda: Locked(desist.Lock),
    "RLock": lambda: Reentrant(desist.RLock),
    "Semaphore": lambda: Locked(lambda: desist.Semaphore(2), room=2),
    "BoundedSemaphore": lambda: Locked(lambda: desist.BoundedSemaphore(1)),
    "Event": Waited,
    "Condition": Notified,
    "Barrier": Met,
    "Queue": lambda: Passed(lambda: desist.Queue(2)),
    "LifoQueue": lambda: Passed(lambda: desist.LifoQueue(1)),
    "PriorityQueue": lambda: Passed(lambda: desist.PriorityQueue(2)),
    "SimpleQueue": lambda: Passed(desist.SimpleQueue),
    "wait_any": OneOfThree,
    "descriptor": Piped,
    "token and thread": Joined,
}

subjects = pytest.mark.parametrize("subject", SUBJECTS)


def many(few: int) -> pytest.MarkDecorator:
    counts = [few, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
    return pytest.mark.parametrize("rounds", counts)


@subjects
@many(150)
def test_cancelled_at_every_instant_of_simulated_time(subject: str, rounds: int) -> None:
    for seed in range(rounds):
        testing.run(lambda seed=seed: Round(seed, 1.0).run(SUBJECTS[subject]()), seed=seed)  # type: ignore[misc]


@pytest.fixture
def busy_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@subjects
@many(20)
@pytest.mark.usefixtures("busy_switching")
def test_cancelled_at_random_times_under_load(subject: str, rounds: int) -> None:
    for seed in range(rounds):
        Round(seed, 3e-5).run(SUBJECTS[subject]())
