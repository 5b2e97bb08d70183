"""Simulated time: I16, I39, I40."""

from __future__ import annotations

import os
import time

import pytest

import desist
from desist import testing
from support import NEVER, in_thread


def now() -> int:
    return round(desist.current_time())


def conversation() -> list[tuple[str, int, int]]:
    """Two threads and a queue: a record of each step, its thread and its time."""
    log: list[tuple[str, int, int]] = []
    queue: desist.Queue[int] = desist.Queue(2)
    start = now()

    def produce() -> None:
        for item in range(5):
            desist.sleep(10)
            queue.put(item)
            log.append(("put", item, now() - start))

    def consume() -> None:
        for _ in range(5):
            item = queue.get()
            desist.sleep(25)
            log.append(("got", item, now() - start))

    threads = [desist.Thread(target=produce), desist.Thread(target=consume)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return log


def test_i16_waits_take_no_real_time_and_end_exactly_at_their_deadline() -> None:
    def body() -> float:
        start = desist.current_time()
        desist.sleep(1e6)
        return desist.current_time() - start

    before = time.monotonic()
    assert testing.run(body) == pytest.approx(1e6, abs=1e-6)
    assert time.monotonic() - before < NEVER


def test_threads_wait_for_each_other_in_simulated_time() -> None:
    assert testing.run(conversation) == [
        ("put", 0, 10),
        ("put", 1, 20),
        ("put", 2, 30),
        ("got", 0, 35),
        ("put", 3, 40),
        ("got", 1, 60),
        ("put", 4, 60),
        ("got", 2, 85),
        ("got", 3, 110),
        ("got", 4, 135),
    ]


def test_i39_a_run_is_reproducible_and_another_seed_is_another_run() -> None:
    def race() -> str:
        order: list[str] = []
        threads = [desist.Thread(target=order.append, args=(letter,)) for letter in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return "".join(order)

    assert testing.run(race) == "abcdef"
    runs = {seed: testing.run(race, seed=seed) for seed in range(20)}
    assert runs == {seed: testing.run(race, seed=seed) for seed in range(20)}
    assert len(set(runs.values())) > 10
    assert testing.run(race, clock=testing.MockClock(seed=3)) == runs[3]


def test_a_deadlock_is_raised_where_the_run_waits() -> None:
    def body() -> None:
        lock = desist.Lock()
        other = desist.Thread(target=desist.sleep_forever, name="sleeper")
        other.start()
        lock.acquire()
        try:
            with pytest.raises(testing.Deadlock, match=r"none of them has a deadline.*sleeper"):
                lock.acquire()
        finally:
            other.cancel()

    testing.run(body)


def test_stuck_threads_left_at_the_end_are_cancelled_and_reported() -> None:
    threads = [desist.Thread(target=desist.sleep_forever, name=f"sleeper {n}") for n in (1, 2)]

    def body() -> None:
        for thread in threads:
            thread.start()

    with pytest.raises(testing.Deadlock, match="sleeper 1, sleeper 2"):
        testing.run(body)
    for thread in threads:
        thread.join()
        assert thread.state is desist.TaskState.CANCELLED


def test_a_run_waits_for_threads_that_still_have_something_to_do() -> None:
    done: list[float] = []

    def linger() -> None:
        desist.sleep(100)
        done.append(desist.current_time())

    def body() -> float:
        desist.Thread(target=linger).start()
        return desist.current_time()

    start = testing.run(body)
    assert done == [pytest.approx(start + 100)]


def test_deadlines_come_in_simulated_time_to_code_that_only_polls() -> None:
    def body() -> list[object]:
        source = desist.CancelSource(timeout=50)
        seen: list[object] = []
        start = now()
        source.token.on_cancel(lambda _: seen.append(now() - start))
        desist.sleep(49)
        seen.append(source.token.cancelled)
        desist.sleep(2)
        return [*seen, source.token.cancelled]

    assert testing.run(body) == [False, 50, True]


def test_a_pool_works_in_simulated_time() -> None:
    def handler(lease: desist.Lease[int]) -> int:
        desist.sleep(100)
        return lease.item * 2

    def body() -> tuple[list[int], int]:
        start = now()
        with desist.WorkerPool(handler, workers=3) as pool:
            futures = [pool.submit(item) for item in range(10)]
            return [future.result() for future in futures], now() - start

    assert testing.run(body) == ([item * 2 for item in range(10)], 400)


def test_a_thread_can_be_killed_in_simulated_time() -> None:
    def body() -> desist.TaskState:
        thread = desist.Thread(target=desist.sleep_forever)
        thread.start()
        desist.sleep(5)
        assert thread.kill().outcome is desist.KillOutcome.COOPERATIVE
        return thread.state

    assert testing.run(body) is desist.TaskState.CANCELLED


def test_descriptors_are_polled_before_time_jumps() -> None:
    def body() -> list[bool]:
        reader, writer = os.pipe()
        seen: list[bool] = []

        def read() -> None:
            seen.append(desist.wait_readable(reader, timeout=50))

        thread = desist.Thread(target=read)
        thread.start()
        desist.sleep(20)
        os.write(writer, b"x")
        thread.join()
        seen.append(desist.wait_readable(reader))
        os.read(reader, 1)
        seen.append(desist.wait_readable(reader, timeout=5))
        os.close(reader)
        os.close(writer)
        return seen

    assert testing.run(body) == [True, True, False]


def test_a_manual_clock_is_moved_by_jump() -> None:
    clock = testing.MockClock(autojump=False)
    woken: list[int] = []

    def body() -> list[int]:
        start = clock.time()

        def sleep() -> None:
            desist.sleep(10)
            woken.append(round(clock.time() - start))

        thread = desist.Thread(target=sleep)
        thread.start()
        clock.jump(9)
        assert not woken
        clock.jump(20)
        assert woken == [10]
        thread.join()
        return woken

    assert testing.run(body, clock=clock) == [10]


@pytest.mark.parametrize("seconds", [-1, float("nan"), "soon"])
def test_a_clock_jumps_by_seconds_that_are_not_negative(seconds: object) -> None:
    with pytest.raises((ValueError, TypeError), match="the time to jump"):
        testing.MockClock().jump(seconds)  # type: ignore[arg-type]


def test_there_is_one_run_at_a_time() -> None:
    with pytest.raises(RuntimeError, match="already"):
        testing.run(lambda: testing.run(int))
    assert testing.run(int) == 0


def test_a_seed_is_given_once() -> None:
    with pytest.raises(ValueError, match="seed"):
        testing.run(int, clock=testing.MockClock(), seed=1)


def test_an_error_of_the_function_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        testing.run(lambda: 1 // 0)


def test_threads_outside_use_the_real_clock() -> None:
    def body() -> float:
        desist.sleep(1e6)
        return desist.current_time() - in_thread(desist.current_time)

    assert testing.run(body) > 1e5


def test_i40_released_objects_are_no_leak() -> None:
    with testing.no_leaks():
        thread = desist.Thread(target=desist.sleep_forever)
        thread.start()
        with desist.Lock(), desist.Semaphore(), desist.cancel_scope(timeout=NEVER) as scope:
            assert scope.token.deadline
        thread.cancel()
        thread.join()


def test_i40_leaks_are_named() -> None:
    lock = desist.Lock()
    thread = desist.Thread(target=desist.sleep_forever)
    sources: list[desist.CancelSource] = []

    def leak() -> None:
        with testing.no_leaks():
            thread.start()
            lock.acquire()
            sources.append(desist.CancelSource(timeout=NEVER))

    with pytest.raises(testing.LeakError, match=r"1 unfinished tasks, 1 armed .*, 1 held locks"):
        leak()
    lock.release()
    thread.cancel()
    thread.join()


def test_an_exception_takes_precedence_over_a_leak() -> None:
    lock = desist.Lock()

    def fail() -> None:
        with testing.no_leaks():
            lock.acquire()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    lock.release()
