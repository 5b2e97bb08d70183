"""The sweeps themselves, and their reports. The sweeps of desist are in test_sweep_*.py."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import testing
from desist.testing import SweepError, SweepReport, sweep_cancels, sweep_kills

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Bank:
    """Two accounts with 100 together."""

    def __init__(self) -> None:
        self.lock = desist.Lock()
        self.accounts = [50, 50]

    def check(self) -> None:
        assert not self.lock.locked()
        assert sum(self.accounts) == 100


def log() -> None:
    """A call: CPython checks for a posted exception before it and behind it."""


def transfer(bank: Bank) -> None:
    with bank.lock, desist.cleanup():
        bank.accounts[0] -= 1
        log()
        bank.accounts[1] += 1


def transfer_and_hope(bank: Bank) -> None:
    with bank.lock:
        bank.accounts[0] -= 1
        log()
        bank.accounts[1] += 1


def line_of(function: Callable[..., object], text: str) -> int:
    """Find the line of a function that contains this text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(at for at, line in enumerate(lines) if text in line)


def found(sweep: Callable[[], object]) -> SweepError:
    """Return the error of the sweep."""
    with pytest.raises(SweepError) as failure:
        sweep()
    return failure.value


# --- findings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", [sweep_kills, sweep_cancels])
def test_correct_code_passes(sweep: Callable[..., SweepReport]) -> None:
    report = sweep(transfer, Bank.check, setup=Bank)
    assert report.points > 20
    assert report.points == report.stopped + report.finished
    assert report.stopped >= 3
    assert report.swallowed == report.missed == 0


def test_incorrect_code_is_found_with_its_line_and_again_by_its_point() -> None:
    error = found(lambda: sweep_kills(transfer_and_hope, Bank.check, setup=Bank))
    assert error.function.endswith("transfer_and_hope")
    assert error.filename == __file__
    first, last = (line_of(transfer_and_hope, text) for text in ("with bank", "[1] +="))
    assert first <= error.line <= last
    assert error.offset > 0
    message = str(error)
    assert message.startswith("check failed\nkilled in front of bytecode ")
    assert f":{error.line}, offset {error.offset} (" in message
    assert f"only={error.point} " in message
    # It is raised where CPython checks next: in the call between the two halves.
    assert "Killed was raised at" in message
    assert f"line {line_of(transfer_and_hope, 'log()')}, in transfer_and_hope" in message
    assert isinstance(error.__cause__, AssertionError)
    again = found(lambda: sweep_kills(transfer_and_hope, Bank.check, setup=Bank, only=error.point))
    assert (again.point, again.line, again.offset) == (error.point, error.line, error.offset)


def test_a_correct_point_passes_alone() -> None:
    report = sweep_kills(transfer_and_hope, Bank.check, setup=Bank, only=1)
    assert report == SweepReport(points=1, stopped=1, swallowed=0, finished=0, missed=0)
    assert str(report) == "1 points: 1 stopped, 0 finished"


def test_a_lock_may_defer_the_kill() -> None:
    report = sweep_kills(transfer_and_hope, Bank.check, setup=Bank, defer=True)
    assert report.stopped > 10


def test_a_lock_of_threading_is_found_held() -> None:
    def work(lock: Any) -> None:
        lock.acquire()
        try:
            log()
        finally:
            lock.release()

    error = found(lambda: sweep_kills(work, lambda lock: not lock.locked(), setup=threading.Lock))
    assert "check returned False" in str(error)
    assert error.line == line_of(work, "acquire")
    assert error.__cause__ is None


def test_a_cancel_in_the_middle_of_a_change_is_found() -> None:
    def work(done: list[int]) -> None:
        done.append(1)
        desist.checkpoint()
        done.append(2)

    error = found(lambda: sweep_cancels(work, lambda done: len(done) != 1, setup=list))
    assert "cancelled in front of bytecode" in str(error)


def test_swallowed_kills_are_counted() -> None:
    def work() -> None:
        with suppress(BaseException):
            log()
        log()

    report = sweep_kills(work)
    assert report.swallowed > 0
    assert report.stopped > 0
    assert "swallowed" in str(report)


def test_pytest_may_fail_in_the_check() -> None:
    def check() -> None:
        pytest.fail("no good")

    assert "check failed, though nothing has stopped the code" in str(
        found(lambda: sweep_kills(log, check))
    )


def test_code_that_fails_by_itself_is_refused() -> None:
    error = found(lambda: sweep_kills(lambda: 1 / 0))
    assert "fn failed, though nothing has stopped the code" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_code_that_turns_a_kill_into_an_error_is_found() -> None:
    def work() -> None:
        try:
            log()
        except desist.Killed:
            raise ValueError from None

    error = found(lambda: sweep_kills(work))
    assert "fn failed\nkilled in front of bytecode" in str(error)
    assert isinstance(error.__cause__, ValueError)


def test_a_hung_run_ends_with_its_stack() -> None:
    def work(lock: Any) -> None:
        for _ in range(2):
            try:
                lock.acquire()
                log()
                lock.release()
            except BaseException:  # noqa: BLE001, PERF203 (as a victim does)
                pass

    def setup() -> Any:
        locks.append(threading.Lock())
        return locks[-1]

    locks: list[Any] = []
    error = found(lambda: sweep_kills(work, setup=setup, timeout=0.2))
    assert "fn has not ended within 0.2 s; it was at" in str(error)
    assert "lock.acquire()" in str(error)
    locks[-1].release()


# --- the code that is killed ----------------------------------------------------------------------


def test_only_the_code_under_test_is_killed() -> None:
    stop = threading.Event()

    def bystand() -> None:
        while not stop.wait(0.0001):
            log()

    def work() -> None:
        thread = desist.Thread(target=log)
        threads.append(thread)
        thread.start()

    bystander = desist.Thread(target=bystand)
    threads = [bystander]
    bystander.start()
    assert sweep_kills(work).stopped > 20
    stop.set()
    for thread in threads:
        if thread.ident is not None:  # the work was killed before it could start the thread
            thread.join()
            assert thread.state is desist.TaskState.DONE


def handle(lease: desist.Lease[int]) -> int:
    desist.checkpoint()
    return lease.item * 2


def use_a_pool() -> None:
    with desist.WorkerPool(handle, workers=2) as pool:
        futures = [pool.submit(number) for number in range(3)]
        assert [future.result() for future in futures] == [0, 2, 4]
        assert pool.workers_alive() == 2


@pytest.mark.parametrize("sweep", [sweep_kills, sweep_cancels])
def test_the_handlers_of_a_pool_are_killed(sweep: Callable[..., SweepReport]) -> None:
    # An item that was cancelled by other code than the pool is leased again, too.
    report = sweep(use_a_pool, victims="started")
    assert report.points > 10
    assert report.stopped > 3


def test_threads_are_killed_and_fn_is_not() -> None:
    def work(done: list[str]) -> None:
        thread = desist.Thread(target=log)
        thread.start()
        thread.join()
        done.append(thread.state.name)

    def check(done: list[str]) -> None:
        assert done in (["DONE"], ["KILLED"])

    report = sweep_kills(work, check, setup=list, victims="started")
    assert report.stopped > 10


def test_every_bytecode_of_fn_is_a_point() -> None:
    def work() -> None:
        total = 0
        for number in range(3):
            total += number

    def longer() -> None:
        work()
        work()

    once, twice = sweep_kills(work).points, sweep_kills(longer).points
    assert 20 < once < 60
    assert 2 * once < twice < 2 * once + 15


def test_code_with_a_varying_number_of_bytecodes_is_swept() -> None:
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        for _ in range(len(runs) % 7):
            log()

    report = sweep_kills(work)
    assert report.points > 20


def test_garbage_is_not_collected_inside_the_code() -> None:
    def work() -> None:
        enabled.append(gc.isenabled())

    enabled: list[bool] = []
    sweep_kills(work)
    assert not any(enabled)
    assert gc.isenabled()


def test_a_killed_finalizer_is_not_reported() -> None:
    class Final:
        def __del__(self) -> None:
            log()

    def work() -> None:
        Final()

    assert sweep_kills(work).swallowed > 0  # pytest fails on unraisable exceptions


# --- bad input ------------------------------------------------------------------------------------


def test_one_at_a_time() -> None:
    error = found(lambda: sweep_kills(lambda: sweep_kills(log)))
    assert isinstance(error.__cause__, RuntimeError)
    assert "one at a time" in str(error.__cause__)
    sweep_kills(log)


def test_too_many_points_are_refused_at_once() -> None:
    def work() -> None:
        for _ in range(1000):
            pass

    with pytest.raises(ValueError, match=r"fn takes \d+ bytecodes, .* limit, which is 500"):
        sweep_kills(work, limit=500)


def test_a_sweep_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="there is nothing to sweep"):
        sweep_kills(log, victims="started")


def test_unknown_victims_are_refused() -> None:
    with pytest.raises(ValueError, match="'fn' or 'started', not 'all'"):
        sweep_kills(log, victims="all")  # type: ignore[call-overload]


@pytest.mark.parametrize(("only", "message"), [(0, "at least 1"), (10_000, "no bytecode 10000")])
def test_an_unknown_point_is_refused(only: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_kills(log, only=only)


def test_the_caller_may_be_cancelled() -> None:
    with desist.move_on_after(0.05) as scope:
        sweep_kills(desist.sleep_forever, timeout=100)
    assert scope.cancelled_caught
    sweep_kills(log)


# --- beside other tools ---------------------------------------------------------------------------


def test_other_tracers_are_restored_afterwards() -> None:
    def tracer(*_: object) -> None:
        return None

    threading.settrace(tracer)
    threading.setprofile(tracer)
    try:
        sweep_kills(log)
        assert threading.gettrace() is tracer
        assert threading.getprofile() is tracer
    finally:
        threading.settrace(None)
        threading.setprofile(None)


def test_the_tracer_of_the_calling_thread_stays() -> None:
    calls: list[str] = []

    def tracer(frame: Any, *_: object) -> None:
        calls.append(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        sweep_kills(log, log)
    finally:
        sys.settrace(before)
    assert calls.count("log") > 1  # the check; code that runs as a task is not traced


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no sys.monitoring")
def test_without_a_tool_id_it_says_so() -> None:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    free = [tool for tool in range(6) if monitoring.get_tool(tool) is None]
    for tool in free:
        monitoring.use_tool_id(tool, "mine")
    try:
        with pytest.raises(RuntimeError, match="all are taken"):
            sweep_kills(log)
    finally:
        for tool in free:
            monitoring.free_tool_id(tool)


MEASURED = """
import desist
from desist import testing

def work(lock):
    with lock:
        helper()

def helper():
    return 1

def check(lock):
    assert not lock.locked()

report = testing.sweep_kills(work, check, setup=desist.Lock)
assert report.stopped > 10, report
print("swept")
"""


@pytest.mark.parametrize("core", ["ctrace", "sysmon", "pytrace"])
def test_it_runs_under_coverage(core: str, tmp_path: Path) -> None:
    pytest.importorskip("coverage.tracer" if core == "ctrace" else "coverage")
    if core == "sysmon" and sys.version_info < (3, 12):
        pytest.skip("there is no sys.monitoring")
    script = tmp_path / "measured.py"
    script.write_text(MEASURED, encoding="utf-8")
    line = [sys.executable, "-m", "coverage", "run", f"--data-file={tmp_path}/data", str(script)]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, env={"COVERAGE_CORE": core}
    )
    assert (done.returncode, done.stdout) == (0, "swept\n"), done.stderr


def test_it_runs_in_simulated_time() -> None:
    def work() -> None:
        assert testing.run(one_hour) == "slept"

    def one_hour() -> str:
        thread = desist.Thread(target=desist.sleep, args=(3600,))
        thread.start()
        thread.join()
        return "slept"

    assert sweep_kills(work, victims="started").stopped > 10
