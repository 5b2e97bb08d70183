"""I46: a blocking call that was ended raises, and has had no effect; counted over many instants.

Threads make calls that block on the other end of a `Traffic`: bytes, items, connections and permits
come and go at random instants, and so do cancellations and kills. In the end all are counted: a
call that has raised has taken nothing, and one that was ended has raised.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import random
import signal
import socket
import subprocess
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

import desist
from desist import Cancelled, Killed, StopPolicy
from support import NEVER, in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    not desist.foreign_status().available,
    reason=f"calls cannot be ended here: {desist.foreign_status().reason}",
)

PAUSE = 0.002
"""Seconds, at most, between two actions of the other end; a cancellation comes about as soon."""

LONG = 10
"""Seconds of a wait in which nothing is counted: if it is not ended, the round goes on after it."""

MOST_PENDING = 32
"""Connections that wait to be accepted."""

BY_FORCE = StopPolicy(cooperative=0, at_wait=NEVER)
"""Killed is raised at the calls that are ended, and nowhere else in code without desist's waits."""


class Traffic:
    """What a thread sends and receives in calls that may be ended, and those at the other end.

    `ours` counts what the calls say that they have done, `theirs` what has arrived, or has gone.
    """

    def __init__(self, stack: ExitStack, choose: random.Random) -> None:
        self.choose = choose
        self.ours: Counter[str] = Counter()
        self.theirs: Counter[str] = Counter()
        self.pipe_in, self.feed_pipe = self._pipe(stack)
        self.drain_pipe, self.pipe_out = self._pipe(stack)
        self.socket_in, self.feed_socket = map(stack.enter_context, socket.socketpair())
        self.socket_out, self.drain_socket = map(stack.enter_context, socket.socketpair())
        self.server = stack.enter_context(
            socket.create_server(("127.0.0.1", 0), backlog=2 * MOST_PENDING)
        )
        self.items: queue.Queue[int] = queue.Queue()
        self.places: queue.Queue[int] = queue.Queue(1)
        self.permits = threading.Semaphore(0)
        self.calls: list[Callable[[], object]] = [
            self.read,
            self.write,
            self.receive,
            self.receive_in_time,
            self.send,
            self.accept,
            self.get,
            self.put,
            self.acquire,
            partial(time.sleep, NEVER),
            lambda: threading.Event().wait(LONG),
            lambda: concurrent.futures.wait([Future()], LONG),
        ]
        for end in (self.feed_pipe, self.drain_pipe):
            os.set_blocking(end, False)
        for side in (self.feed_socket, self.drain_socket):
            side.setblocking(False)
        self._over = desist.Event()
        self._others = [
            threading.Thread(target=self._act_until_over, args=(random.Random(seed), actions))
            for seed, actions in enumerate((self._feeding, self._draining))
        ]

    @staticmethod
    def _pipe(stack: ExitStack) -> tuple[int, int]:
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        return reader, writer

    # --- calls that may be ended

    def read(self) -> None:
        self.ours["read"] += len(os.read(self.pipe_in, 65536))

    def write(self) -> None:
        self.ours["written"] += os.write(self.pipe_out, b"w" * self.choose.randrange(1, 200_000))

    def receive(self) -> None:
        self.ours["received"] += len(self.socket_in.recv(65536))

    def receive_in_time(self) -> None:
        self.socket_in.settimeout(NEVER)
        try:
            self.receive()
        finally:
            self.socket_in.settimeout(None)

    def send(self) -> None:
        self.ours["sent"] += self.socket_out.send(b"s" * self.choose.randrange(1, 500_000))

    def accept(self) -> None:
        connection, _ = self.server.accept()
        self.ours["accepted"] += 1
        connection.close()

    def get(self) -> None:
        self.ours["items"] += self.items.get()

    def put(self) -> None:
        self.places.put(1)
        self.ours["places"] += 1

    def acquire(self) -> None:
        self.permits.acquire()
        self.ours["permits"] += 1

    # --- the other end

    def _feeding(self) -> list[Callable[[], None]]:
        def feed_pipe() -> None:
            self.theirs["read"] += os.write(self.feed_pipe, b"r" * 3)

        def feed_socket() -> None:
            self.theirs["received"] += self.feed_socket.send(b"r" * 3)

        def connect() -> None:
            if self.theirs["accepted"] - self.ours["accepted"] > MOST_PENDING:
                return
            with socket.create_connection(self.server.getsockname()):
                self.theirs["accepted"] += 1

        def put() -> None:
            self.items.put(1)
            self.theirs["items"] += 1

        def release() -> None:
            self.permits.release()
            self.theirs["permits"] += 1

        return [feed_pipe, feed_socket, connect, put, release]

    def _draining(self) -> list[Callable[[], None]]:
        def drain_pipe() -> None:
            self.theirs["written"] += len(os.read(self.drain_pipe, 1 << 20))

        def drain_socket() -> None:
            self.theirs["sent"] += len(self.drain_socket.recv(1 << 20))

        def get() -> None:
            self.theirs["places"] += self.places.get_nowait()

        return [drain_pipe, drain_socket, get]

    def _act_until_over(
        self, choose: random.Random, actions: Callable[[], list[Callable[[], None]]]
    ) -> None:
        possible = actions()
        while not self._over.wait(choose.random() * PAUSE):
            with suppress(BlockingIOError, queue.Empty):
                choose.choice(possible)()

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._others:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._others:
                thread.join()

    def settle(self) -> None:
        """Count what is still under way."""
        os.set_blocking(self.pipe_in, False)
        for side in (self.socket_in, self.server):
            side.setblocking(False)
        rest = [self.read, self.receive, self.accept, *self._draining()]
        for action in rest:
            with suppress(BlockingIOError, queue.Empty):
                while True:
                    action()
        self.ours["items"] += self.items.qsize()
        while self.permits.acquire(blocking=False):
            self.ours["permits"] += 1


class Rounds:
    """Calls that are ended, one after the other; `raised` counts the exceptions at the calls."""

    def __init__(self, stack: ExitStack, seed: int) -> None:
        self.choose = random.Random(seed)
        self.traffic = Traffic(stack, self.choose)
        self.raised = 0

    def call(self) -> None:
        try:
            self.choose.choice(self.traffic.calls)()
        except (Cancelled, Killed):
            self.raised += 1
            raise

    def until_a_deadline(self) -> None:
        with desist.move_on_after(self.choose.random() * 1.5 * PAUSE):
            self.call()

    def until_a_cancel(self) -> None:
        with desist.cancel_scope() as scope:
            canceller = threading.Timer(self.choose.random() * PAUSE, scope.cancel)
            canceller.start()
            self.call()
        canceller.cancel()

    def until_a_kill(self) -> None:
        def make_calls() -> None:
            while True:
                self.call()

        thread = desist.Thread(target=make_calls)
        thread.start()
        desist.sleep(self.choose.random() * PAUSE)
        assert thread.kill(policy=BY_FORCE).outcome is not desist.KillOutcome.ABANDONED
        thread.join()

    def run(self, rounds: int) -> None:
        kinds = [self.until_a_deadline] * 8 + [self.until_a_cancel, self.until_a_kill]
        for _ in range(rounds):
            self.choose.choice(kinds)()
            # The allocator, and code that releases the interpreter, in between.
            zlib.compress(bytes(self.choose.randrange(1 << 17)))


@contextmanager
def noise() -> Iterator[None]:
    """Signals, forks, child processes, and a thread that computes, while the block runs."""
    over = desist.Event()
    alarms = 0

    def count_alarm(*_: object) -> None:
        nonlocal alarms
        alarms += 1

    def fork_and_spawn() -> None:
        while not over.wait(10 * PAUSE):
            subprocess.run(["true"], check=True)
            assert in_child(end_a_call) == "True"

    def compute() -> None:
        while not over.wait(PAUSE):
            sum(range(100_000))

    handlers = dict.fromkeys((signal.SIGALRM, signal.SIGCHLD), count_alarm)
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signal.setitimer(signal.ITIMER_REAL, PAUSE, PAUSE)
    threads = [threading.Thread(target=body) for body in (fork_and_spawn, compute)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, handler)
    assert alarms > 0


def end_a_call() -> bool:
    with desist.move_on_after(PAUSE) as scope:
        time.sleep(NEVER)
    return scope.cancelled_caught


def run_rounds(rounds: int, seed: int, threads: int) -> None:
    """Run so many rounds on each of the threads, one of which is the calling one, and count."""
    before = desist.foreign_status().ended
    with ExitStack() as stack:
        all_rounds = [Rounds(stack, seed * 100 + number) for number in range(threads)]
        with ExitStack() as traffic:
            for one in all_rounds:
                traffic.enter_context(one.traffic.running())
            with desist.TaskGroup() as group:
                for one in all_rounds[1:]:
                    group.start_soon(one.run, rounds)
                all_rounds[0].run(rounds)
        ended = desist.foreign_status().ended - before
        for one in all_rounds:
            one.traffic.settle()
            assert one.traffic.ours == one.traffic.theirs
        assert sum(one.raised for one in all_rounds) == ended
        assert ended > 0


def test_i46_calls_that_are_ended_at_random_instants_raise_and_lose_nothing() -> None:
    run_rounds(200, seed=1, threads=1)


def test_i46_beside_signals_forks_and_other_threads_calls_raise_and_lose_nothing() -> None:
    with noise():
        run_rounds(60, seed=2, threads=3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_i46_many_calls_that_are_ended_at_random_instants(seed: int) -> None:
    with noise() if seed % 2 else nullcontext():
        run_rounds(25_000, seed, threads=4)
