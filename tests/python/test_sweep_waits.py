"""I11, I12, I20: stopped at any bytecode, a wait leaves no thread waiting, and nothing behind."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import socket
from desist.testing import no_leaks, sweep_cancels, sweep_kills
from support import IN_HAND, NEVER, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist.testing import SweepReport

sweeps = pytest.mark.parametrize("sweep", [sweep_kills, sweep_cancels])


def in_the_background(body: Callable[[], object]) -> threading.Thread:
    """Run a function on a thread that is not killed."""
    thread = threading.Thread(target=body)
    thread.start()
    return thread


def check_ended(thread: threading.Thread) -> None:
    thread.join(5)
    assert not thread.is_alive()


# --- event ----------------------------------------------------------------------------------------


@sweeps
def test_an_event_that_was_set_is_seen(sweep: Callable[..., SweepReport]) -> None:
    class State:
        def __init__(self) -> None:
            self.event, self.answer = desist.Event(), desist.Event()
            self.told: list[None] = []
            self.waiter = in_the_background(self.wait)

        def wait(self) -> None:
            self.event.wait()
            self.answer.set()

        def use(self) -> None:
            self.told.append(self.event.set())  # type: ignore[func-returns-value]
            assert self.answer.wait(NEVER)
            self.event.clear()

        def check(self) -> None:
            if not self.told:
                self.event.set()
            check_ended(self.waiter)

    report = sweep(State.use, State.check, setup=State)
    tell(f"Event, {sweep.__name__}", report)
    assert report.stopped > 0


# --- condition ------------------------------------------------------------------------------------


class Rendezvous:
    """One thread waits for a number, and one sets it; one of the two is stopped."""

    def __init__(self) -> None:
        self.condition = desist.Condition(desist.Lock(on_kill="release"))
        self.number = 0
        self.others: list[threading.Thread] = []

    def wait(self) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.number > 0)
            self.number -= 1

    def wait_by_hand(self) -> None:
        self.condition.acquire()
        try:
            while not self.number:
                self.condition.wait(NEVER)
            self.number -= 1
        finally:
            self.condition.release()

    def notify(self) -> None:
        with self.condition, desist.cleanup():
            self.number += 1
            self.condition.notify()

    def check(self) -> None:
        """Check that the other two threads end, however the stopped one ended."""
        waiter = in_the_background(self.wait)
        self.notify()
        if not self.number:
            self.notify()
        for thread in [waiter, *self.others]:
            check_ended(thread)
        assert not self.condition.locked()
        assert ", 0)>" in repr(self.condition), "a waiter is left in the queue"


@pytest.mark.parametrize("use", [Rendezvous.wait, Rendezvous.wait_by_hand])
@sweeps
def test_a_wait_for_a_condition(
    use: Callable[[Rendezvous], None], sweep: Callable[..., SweepReport]
) -> None:
    def setup() -> Rendezvous:
        state = Rendezvous()
        state.others.append(in_the_background(state.notify))
        return state

    report = sweep(use, Rendezvous.check, setup=setup)
    tell(f"Condition: {use.__name__}, {sweep.__name__}", report)
    assert report.stopped > 0


@sweeps
def test_a_notify_of_a_condition(sweep: Callable[..., SweepReport]) -> None:
    def setup() -> Rendezvous:
        state = Rendezvous()
        state.others.append(in_the_background(state.wait))
        return state

    def check(state: Rendezvous) -> None:
        state.notify()  # if the other thread has it already, the next wait gets this one
        state.check()

    report = sweep(Rendezvous.notify, check, setup=setup)
    tell(f"Condition: notify, {sweep.__name__}", report)
    assert report.stopped > 0


# --- barrier --------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [None, int])
@sweeps
def test_a_barrier_passes_all_threads_or_none(
    action: Callable[[], object] | None, sweep: Callable[..., SweepReport]
) -> None:
    class State:
        def __init__(self) -> None:
            self.barrier = desist.Barrier(2, action)
            self.passed: list[int] = []
            self.partner = in_the_background(self.meet)

        def meet(self) -> None:
            try:
                self.barrier.wait()
                self.passed.append(1)
            except threading.BrokenBarrierError:
                pass

        def use(self) -> None:
            self.barrier.wait()

        def check(self) -> None:
            self.partner.join(0.02)
            self.barrier.abort()
            check_ended(self.partner)
            assert self.barrier.n_waiting == 0
            self.barrier.reset()
            again = in_the_background(self.meet)
            self.barrier.wait(5)
            check_ended(again)

    report = sweep(State.use, State.check, setup=State)
    tell(f"Barrier{' with action' if action else ''}, {sweep.__name__}", report)
    assert report.stopped > 0


# --- wait_any -------------------------------------------------------------------------------------


@sweeps
def test_wait_any_takes_one_and_leaves_no_trace_of_the_others(
    sweep: Callable[..., SweepReport],
) -> None:
    class State:
        def __init__(self) -> None:
            self.queue: desist.Queue[int] = desist.Queue()
            self.lock, self.permits = desist.Lock(on_kill="release"), desist.Semaphore(1)
            self.event = desist.Event()
            self.queue.put(1)
            self.got: list[Any] = []

        def use(self) -> None:
            with self.lock:
                self.got.append(
                    desist.wait_any(
                        self.event,
                        self.queue.get_op(),
                        desist.Op.after(NEVER),
                    )
                )
                found = desist.wait_any(
                    self.queue.get_op(),
                    self.permits.acquire_op(),
                    timeout=NEVER,
                )
                assert found == (1, True)
                self.permits.release()

        def check(self) -> None:
            assert not self.lock.locked()
            assert self.permits.acquire(timeout=0) or IN_HAND  # no thread owns it
            assert len(self.got) + self.queue.qsize() == 1 or IN_HAND

    report = sweep(State.use, State.check, setup=State)
    tell(f"wait_any, {sweep.__name__}", report)
    assert report.stopped > 20


@sweeps
def test_waits_for_futures_and_threads(sweep: Callable[..., SweepReport]) -> None:
    class State:
        def __init__(self) -> None:
            self.future: concurrent.futures.Future[int] = concurrent.futures.Future()

        def use(self) -> None:
            thread = desist.Thread(target=self.future.set_result, args=(1,), daemon=True)
            thread.start()
            desist.wait_any(self.future)
            desist.wait_any(thread)
            thread.join()

        def check(self) -> None:
            # A lock left held in threading or in the future would block here.
            assert self.future.done() in (True, False)
            other: concurrent.futures.Future[int] = concurrent.futures.Future()
            thread = desist.Thread(target=other.set_result, args=(2,))
            thread.start()
            with desist.fail_after(5):
                desist.wait_any(other)
                thread.join()

    report = sweep(State.use, State.check, setup=State)
    tell(f"threads and futures, {sweep.__name__}", report)
    assert report.stopped > 50


@sweeps
def test_a_result_of_a_pools_future(sweep: Callable[..., SweepReport]) -> None:
    def handle(lease: desist.Lease[int]) -> int:
        return lease.item

    with desist.WorkerPool(handle, workers=1) as pool:

        def use() -> None:
            future = pool.submit(1)
            future.add_done_callback(lambda _: None)
            while not future.done():
                desist.sleep(0)
            assert not future.running()
            assert future.result() == 1

        def check() -> None:
            with desist.fail_after(5):
                assert pool.submit(2).result() == 2

        report = sweep(use, check)
    tell(f"a pool's future, {sweep.__name__}", report)
    assert report.stopped > 50


# --- blocks ---------------------------------------------------------------------------------------


def blocks_in_blocks() -> None:
    with desist.cancel_scope(timeout=NEVER):
        with desist.shield(NEVER), desist.move_on_after(0) as inner:
            desist.checkpoint()
        assert inner.cancelled_caught
        try:
            with desist.fail_after(NEVER):
                desist.sleep(0)
        finally:
            with desist.cleanup(), desist.shield(1.0):
                desist.sleep(0)
    with desist.CancelSource(timeout=NEVER) as source, source.token.on_cancel(print):
        desist.checkpoint()


@sweeps
def test_blocks_leave_no_deadline_armed(sweep: Callable[..., SweepReport]) -> None:
    with no_leaks():
        report = sweep(blocks_in_blocks)
    tell(f"scope, shield, cleanup, {sweep.__name__}", report)
    assert report.stopped > 50


# --- sockets --------------------------------------------------------------------------------------


@sweeps
def test_a_socket_continues_at_the_same_byte(sweep: Callable[..., SweepReport]) -> None:
    class State:
        def __init__(self) -> None:
            self.one, self.other = socket.socketpair()
            self.got: list[bytes] = []

        def use(self) -> None:
            self.one.settimeout(NEVER)
            self.one.sendall(b"ab")
            self.got.append(self.other.recv(1))
            self.got.append(self.other.recv(1))

        def check(self) -> None:
            with self.one, self.other, desist.fail_after(5):
                self.one.sendall(b"z")
                while not self.got or not self.got[-1].endswith(b"z"):
                    self.got.append(self.other.recv(1))
            received = b"".join(self.got)
            # Bytes that a killed thread had received are lost with it.
            lost = (b"az", b"bz") if sweep is sweep_kills else ()
            assert received in (b"z", b"abz", *lost), received

    report = sweep(State.use, State.check, setup=State)
    tell(f"socket, {sweep.__name__}", report)
    assert report.stopped > 20
