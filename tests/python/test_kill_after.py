"""kill_after: a thread is forced out of a block that ignores its deadline, and no further."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Cancelled, DeadlineExceeded, Killed, KillOutcome, Lock, TaskState, testing
from desist.testing import sweep_kills
from support import FORCE, NEVER, Victim, fork, in_thread, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A kill may be raised in a finalizer that happens to run in the block; a finalizer cannot
# propagate it and reports it. A real kill is delivered again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def here(body: Callable[[], Any]) -> Any:
    return body()


def in_task(body: Callable[[], Any]) -> Any:
    """Run it on a desist thread."""
    results: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            results.append(body())
        except BaseException as error:  # noqa: BLE001 (it is raised again, over there)
            raised.append(error)

    thread = desist.Thread(target=run)
    thread.start()
    thread.join()
    assert thread.state is TaskState.DONE
    if raised:
        raise raised[0]
    return results[0]


PLACES = pytest.mark.parametrize("place", [here, in_thread, in_task])


def count() -> None:
    n = 0
    while n < 10**12:
        n += 1


# --- forced out of the block ----------------------------------------------------------------------


def loop_in_the_block() -> None:
    with desist.cancel_scope(timeout=0, kill_after=0):
        n = 0
        while n < 10**12:
            n += 1


def endless_loop_in_the_block() -> None:
    with desist.cancel_scope(timeout=0, kill_after=0):
        while True:
            pass


def loop_below() -> None:
    with desist.fail_after(0, kill_after=0.001):
        count()


def loop_in_a_generator() -> None:
    def numbers() -> Iterator[int]:
        with desist.fail_after(deadline=desist.current_time(), kill_after=0):
            yield 1
            count()

    assert list(numbers())


def wait_under_a_shield() -> None:
    with desist.cancel_scope(timeout=0, kill_after=0), desist.shield(NEVER):
        desist.sleep(NEVER)


def wait_that_has_begun() -> None:
    with desist.cancel_scope(timeout=0.01, kill_after=0.01), desist.shield(NEVER):
        desist.Event().wait()


@desist.deadline(0, kill_after=0)
def function() -> None:
    count()


@PLACES
@pytest.mark.parametrize(
    "body",
    [
        loop_in_the_block,
        endless_loop_in_the_block,
        loop_below,
        loop_in_a_generator,
        wait_under_a_shield,
        wait_that_has_begun,
        function,
    ],
)
def test_a_block_that_ignores_its_deadline_is_left(
    body: Callable[[], None], place: Callable[[Callable[[], None]], None]
) -> None:
    if body is loop_in_a_generator and place is not here and sys.version_info < (3, 12):
        pytest.skip("could be suspended before the kill")
    with pytest.raises(DeadlineExceeded) as raised:
        place(body)
    assert isinstance(raised.value.__cause__, Killed)
    assert raised.value.__cause__.cause.kind is desist.CauseKind.DEADLINE


@PLACES
def test_a_cancel_that_is_ignored_is_enforced_and_quiet(place: Callable[..., None]) -> None:
    def body() -> None:
        with desist.cancel_scope(kill_after=0.001) as scope:
            scope.cancel("enough")
            count()
        assert scope.cancelled_caught
        with desist.move_on_after(0, kill_after=0.001) as scope:
            count()
        assert scope.cancelled_caught
        with desist.move_on_after(deadline=0, kill_after=0.001) as scope:
            count()
        assert scope.cancelled_caught

    place(body)


def test_a_scope_that_was_cancelled_before_it_was_entered_is_left() -> None:
    scope = desist.cancel_scope(kill_after=0.001)
    scope.cancel()
    with scope:
        count()
    assert scope.cancelled_caught


def test_another_thread_may_cancel_or_move_the_deadline_of_a_block_that_computes() -> None:
    for end in (
        lambda scope: scope.cancel(),
        lambda scope: setattr(scope, "deadline", desist.current_time()),
    ):
        scope = desist.move_on_after(NEVER, kill_after=0.001)

        def body(ready: Callable[[], None], scope: desist.CancelScope = scope) -> bool:
            with scope:
                ready()
                count()
            return scope.cancelled_caught

        with Victim(body) as victim:
            end(scope)
        assert victim.results == [True]


def test_a_deadline_that_is_moved_away_is_not_enforced() -> None:
    with desist.cancel_scope(timeout=0.001, kill_after=0.02) as scope:
        scope.deadline = math.inf
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            pass
    assert not scope.cancelled_caught


@PLACES
def test_i23_a_swallowed_kill_is_delivered_again(place: Callable[..., str]) -> None:
    def body() -> str:
        swallowed = 0
        with desist.cancel_scope(timeout=0, kill_after=0):
            while swallowed < 3:
                try:
                    count()
                except Killed:  # noqa: PERF203 (as a victim does)
                    swallowed += 1
        return "by itself"

    assert place(body) == "by itself"


def swallow_all() -> None:
    while True:
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001, PERF203 (as a victim does)
            pass


def swallow_in_calls() -> None:
    while True:
        with suppress(BaseException):
            try:
                count()
            except BaseException:  # noqa: BLE001
                len("")


def swallow_at_waits() -> None:
    while True:
        with suppress(BaseException):
            desist.sleep_forever()


DEAF = pytest.mark.parametrize("body", [swallow_all, swallow_in_calls, swallow_at_waits])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before 3.12 no rung kills at every step")
# As an error, pytest's code would report it inside the block.
@pytest.mark.filterwarnings("ignore::desist.CancelledSwallowedWarning")
@pytest.mark.parametrize("decorated", [False, True], ids=["with", "decorator"])
@DEAF
@pytest.mark.parametrize("place", [here, in_task])
def test_i23_a_block_that_swallows_everything_cannot_go_on(
    place: Callable[..., str], body: Callable[[], None], *, decorated: bool
) -> None:
    lock = Lock()

    def hold() -> None:
        if body is swallow_all:  # not in every version, because it defers the kill
            lock.acquire(blocking=False)  # no checkpoint

    @desist.deadline(0, kill_after=0)
    def in_a_call() -> None:
        hold()
        body()

    def run() -> str:
        with pytest.raises(DeadlineExceeded) as late:  # noqa: PT012
            if decorated:
                in_a_call()
            else:
                with desist.fail_after(0, kill_after=0):
                    hold()
                    body()
        assert isinstance(late.value.__cause__, Killed)
        for _ in range(1000):
            pass  # nothing is raised behind it
        return f"locked: {lock.locked()}"

    assert place(run) == "locked: False"


def test_an_error_of_the_block_passes() -> None:
    def body() -> None:
        with desist.cancel_scope(timeout=0, kill_after=0):
            try:
                count()
            except Killed:
                raise ZeroDivisionError from None

    with pytest.raises(ZeroDivisionError):
        body()


def test_a_block_that_ends_in_time_leaves_nothing_behind() -> None:
    with testing.no_leaks():
        for _ in range(100):
            with desist.cancel_scope(timeout=NEVER, kill_after=NEVER) as scope:
                pass
            assert not scope.cancel_called
    count_to_many()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no sys.monitoring")
@PLACES
def test_observed_code_is_freed(place: Callable[[Callable[[], None]], None]) -> None:
    with pytest.raises(DeadlineExceeded):
        place(loop_in_the_block)
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    assert [monitoring.get_tool(tool) for tool in (3, 4)] == [None, None]


def count_to_many(limit: int = 100_000) -> None:
    n = 0
    while n < limit:
        n += 1


# --- nested ---------------------------------------------------------------------------------------


def test_a_kill_of_the_inner_block_ends_there() -> None:
    with desist.cancel_scope(timeout=NEVER, kill_after=0) as outer:
        with pytest.raises(DeadlineExceeded), desist.cancel_scope(timeout=0, kill_after=0):
            count()
        count_to_many()
    assert not outer.cancel_called


def test_a_kill_of_the_outer_block_passes_the_inner_one() -> None:
    inner = desist.cancel_scope(timeout=NEVER, kill_after=0)
    with desist.move_on_after(0, kill_after=0) as outer:
        with inner:
            count()
        pytest.fail("the inner block absorbed the outer block's cancellation")
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


def test_both_blocks_are_killed_and_the_outer_one_absorbs() -> None:
    with desist.move_on_after(0, kill_after=0) as outer:
        with desist.move_on_after(0, kill_after=0):
            count()
        count()
    assert outer.cancelled_caught


def test_an_enclosing_scope_that_is_cancelled_too_absorbs_the_rest_of_the_kill() -> None:
    with desist.move_on_after(0) as outer:
        with desist.cancel_scope(timeout=0, kill_after=0):
            count()
        pytest.fail("went on, though cancelled")
    assert outer.cancelled_caught
    with desist.move_on_after(0):
        with pytest.raises(Cancelled) as raised, desist.cancel_scope(timeout=0, kill_after=0):
            count()
        assert isinstance(raised.value.__cause__, Killed)


def test_a_kill_of_the_whole_task_passes_the_block() -> None:
    scope = desist.cancel_scope(timeout=NEVER, kill_after=0)

    def body(ready: Callable[[], None]) -> None:
        with scope:
            ready()
            count()

    with Victim(body) as victim:
        victim.kill(policy=FORCE)
    assert isinstance(victim.raised, Killed)
    assert victim.state is TaskState.KILLED
    assert not scope.cancelled_caught


def test_a_deferred_kill_of_a_task_leaves_the_kill_of_an_inner_block_alone() -> None:
    steps: list[str] = []
    scope = desist.move_on_after(NEVER, kill_after=0)

    def body(ready: Callable[[], None]) -> None:
        with desist.cleanup():
            with scope:
                ready()
                count()
            steps.append("the block is left")
        steps.append("too far")

    with Victim(body) as victim:
        report = victim.kill_soon(policy=FORCE)
        scope.cancel()
        assert report.result().outcome is KillOutcome.AT_WAIT
    assert steps == ["the block is left"]


# --- deferred kills -------------------------------------------------------------------------------


def test_i25_a_clean_up_zone_inside_defers_it() -> None:
    steps: list[str] = []
    with desist.move_on_after(0, kill_after=0, grace=NEVER):
        with desist.cleanup():
            count_to_many()
            steps.append("cleaned up")
        count()
    assert steps == ["cleaned up"]


def test_a_clean_up_zone_outside_does_not_defer_it() -> None:
    with desist.cleanup(), desist.move_on_after(0, kill_after=0) as scope:
        count()
    assert scope.cancelled_caught


def test_i24_a_held_lock_defers_it_until_it_is_released() -> None:
    lock = Lock()
    steps: list[str] = []
    with desist.cancel_scope(kill_after=0) as scope:
        with lock:
            scope.cancel()
            count_to_many()
            steps.append("done")
        count()
    assert steps == ["done"]
    assert not lock.poisoned
    assert not lock.locked()


def test_i21_a_lock_that_is_held_for_too_long_is_poisoned() -> None:
    locks = Lock(), Lock()
    with desist.cancel_scope(kill_after=0) as scope, locks[0]:
        locks[1].acquire()
        scope.cancel()
        count()
    for lock in locks:
        assert lock.poisoned
        assert not lock.locked()


def test_a_lock_that_was_taken_before_is_neither_respected_nor_poisoned_nor_released() -> None:
    lock = Lock()
    with lock:
        began = desist.current_time()
        with desist.move_on_after(0, kill_after=0):
            count()
        assert desist.current_time() - began < 0.9, "it was held off"
        assert lock.locked()
    other = Lock()
    with desist.move_on_after(0, kill_after=0):
        other.acquire()
        try:
            with desist.move_on_after(0.001, kill_after=0):
                count()
        finally:
            other.release()
    assert not lock.poisoned
    assert not other.poisoned


# --- a kill at every bytecode ---------------------------------------------------------------------


class Left:
    """A block that was killed somewhere, and the code behind it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.steps: list[str] = []

    def run(self, body: Callable[[Lock], None]) -> None:
        try:
            fresh(body)(self.lock)
        except DeadlineExceeded as raised:
            self.steps.append("left")
            if not isinstance(raised.__cause__, Killed):
                raise
        assert not self.lock.locked()
        # The code behind is untouched, and no kill is pending.
        n = 0
        while n < 300:
            n += 1
        self.steps.append("behind")

    def run_outside_any_task(self, body: Callable[[Lock], None]) -> None:
        thread = threading.Thread(target=self.run, args=(body,))
        thread.start()
        thread.join()


def fresh(function: Callable[[Lock], None]) -> Callable[[Lock], None]:
    """Copy the function, so that no tool has observed its code.

    Up to 3.14 a tool of sys.monitoring that disables INSTRUCTION events of some code disables them
    for the other tools, here for the sweep.
    """

    def copy(code: types.CodeType) -> types.CodeType:
        constants = (copy(c) if isinstance(c, types.CodeType) else c for c in code.co_consts)
        return code.replace(co_consts=tuple(constants))

    return types.FunctionType(copy(function.__code__), function.__globals__)


def plain_loop(_lock: Lock) -> None:
    with desist.cancel_scope(timeout=NEVER, kill_after=NEVER):
        n = 0
        while n < 5:
            n += 1
        for _ in range(3):
            n += 1
        while True:
            n += 1
            if n > 12:
                break


def with_lock(lock: Lock) -> None:
    with desist.cancel_scope(timeout=NEVER, kill_after=NEVER), lock:
        n = 0
        while n < 3:
            n += 1


def acquired_inside(lock: Lock) -> None:
    with desist.cancel_scope(timeout=NEVER, kill_after=NEVER):
        lock.acquire()
        try:
            len("")
        finally:
            lock.release()


def acquired_in_try(lock: Lock) -> None:
    with desist.fail_after(NEVER, kill_after=NEVER):
        try:
            lock.acquire()
            len("")
        finally:
            if lock.locked():
                lock.release()


def swallowing(lock: Lock) -> None:
    with desist.cancel_scope(timeout=NEVER, kill_after=NEVER):
        for _ in range(2):
            try:
                with lock:
                    len("")
            except BaseException:  # noqa: BLE001, PERF203 (as a victim does)
                pass


def nested(lock: Lock) -> None:
    with (
        desist.cancel_scope(timeout=NEVER, kill_after=NEVER),
        desist.shield(NEVER),
        desist.cancel_scope(timeout=NEVER, kill_after=NEVER),
        lock,
    ):
        n = 0
        while n < 3:
            n += 1


def block_in_a_generator(lock: Lock) -> None:
    def numbers() -> Iterator[int]:
        with desist.cancel_scope(timeout=NEVER, kill_after=NEVER), lock:
            yield 1
            yield 2

    for _number in numbers():
        len("")


def block_around_a_generator(lock: Lock) -> None:
    def numbers() -> Iterator[int]:
        with lock:
            yield 1
            yield 2

    with desist.cancel_scope(timeout=NEVER, kill_after=NEVER):
        for _number in numbers():
            len("")


def decorated(lock: Lock) -> None:
    @desist.deadline(NEVER, kill_after=NEVER)
    def inner(limit: int) -> int:
        with lock:
            n = 0
            while n < limit:
                n += 1
        return n

    assert inner(limit=3) == 3


BODIES = [
    plain_loop,
    with_lock,
    acquired_inside,
    acquired_in_try,
    swallowing,
    nested,
    block_in_a_generator,
    block_around_a_generator,
    decorated,
]


@pytest.mark.parametrize("in_task", [False, True], ids=["thread", "task"])
@pytest.mark.parametrize("defer", [False, True], ids=["killed in locks", "locks defer it"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_i22_a_kill_at_any_bytecode_of_a_block_ends_there(
    body: Callable[[Lock], None], *, defer: bool, in_task: bool
) -> None:
    left, poisoned, points = sweep_block(body, in_task=in_task, defer=defer, block=0)
    assert points > 15
    assert left > 5 or body is swallowing
    assert poisoned == 0 or not defer


def test_i22_a_kill_of_the_inner_block_at_any_bytecode_ends_there() -> None:
    left, _, points = sweep_block(nested, in_task=False, defer=False, block=1)
    assert points > 20
    assert left > 5


def sweep_block(
    body: Callable[[Lock], None], *, in_task: bool, defer: bool, block: int
) -> tuple[int, int, int]:
    """Count the points, the runs that left the block, and those that poisoned its lock."""
    found = [0, 0]

    def run(state: Left) -> None:
        if in_task:
            state.run(body)
        else:
            state.run_outside_any_task(body)

    def check(state: Left) -> None:
        assert state.steps in (["behind"], ["left", "behind"])
        found[0] += len(state.steps) - 1
        found[1] += state.lock.poisoned

    report = sweep_kills(
        run,
        check,
        setup=Left,
        victims="fn" if in_task else "started",
        defer=defer,
        block=block,
    )
    tell(f"kill_after: {body.__name__}{', deferred' * defer}{', in a task' * in_task}", report)
    return found[0], found[1], report.points


# --- real time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [here, in_thread])
def test_i22_no_exception_is_late_where_blocks_end_when_their_time_is_up(
    place: Callable[[Callable[[], None]], None],
) -> None:
    blocks = 2000
    left = 0

    @desist.deadline(0, kill_after=0.0005)
    def called(end: float) -> None:
        while time.perf_counter() < end:
            pass

    def body() -> None:
        nonlocal left
        for number in range(blocks):
            end = time.perf_counter() + number * 37 % 1000 * 1e-6
            try:
                if number % 2:
                    called(end)
                else:
                    with desist.cancel_scope(timeout=0, kill_after=0.0005):
                        while time.perf_counter() < end:
                            pass
            except DeadlineExceeded:
                left += 1
            n = 0
            while n < 200:
                n += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        place(body)
    finally:
        sys.setswitchinterval(interval)
    count_to_many()
    print(f"{left} of {blocks} blocks were left")  # noqa: T201
    assert 0 < left < blocks


# --- the main thread ------------------------------------------------------------------------------

BLOCKED = {
    "time.sleep": "time.sleep(1000)",
    "recv": "a.recv(1)",
    "Lock.acquire": "lock.acquire()",
    "with lock": "with lock: pass",
    "Event.wait": "threading.Event().wait()",
    "Queue.get": "queue.Queue().get()",
    "Popen.wait": "child.wait()",
    "join": "thread.join()",
    "select": "select.select([a], [], [])",
}


@pytest.mark.skipif(sys.platform != "linux", reason="real-time signals")
@pytest.mark.parametrize("form", ["with", "decorator"])
def test_a_system_call_that_blocks_the_main_thread_is_interrupted(form: str) -> None:
    script = """
        import queue, select, socket, subprocess, sys, threading, time
        import desist
        a, b = socket.socketpair()
        lock = threading.Lock()
        lock.acquire()
        child = subprocess.Popen(["sleep", "1000"])
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
    """
    for name, blocked in BLOCKED.items():
        if form == "with":
            script += f"""
        try:
            with desist.cancel_scope(timeout=0, kill_after=0.01):
                {blocked}
        except desist.DeadlineExceeded:
            print({name!r})
    """
        else:
            script += f"""
        @desist.deadline(0, kill_after=0.01)
        def blocked():
            {blocked}
        try:
            blocked()
        except desist.DeadlineExceeded:
            print({name!r})
    """
    script += """
        child.kill()
        child.wait()
    """
    done = run(script)
    assert done.stdout.splitlines() == list(BLOCKED)


def run(script: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done


@pytest.mark.skipif(sys.platform != "linux", reason="real-time signals")
def test_a_signal_handler_of_the_user_is_never_replaced() -> None:
    run("""
        import signal, time
        import desist
        def theirs(*_):
            raise SystemExit("hit the user's handler")
        last = signal.SIGRTMAX - 2
        signal.signal(last, theirs)
        for _ in range(2):
            with desist.move_on_after(0, kill_after=0.001) as scope:
                time.sleep(1000)
            assert scope.cancelled_caught
            assert signal.getsignal(last) is theirs
            # Also one that takes the place of ours.
            signal.signal(last - 1, theirs)
        assert signal.getsignal(last - 1) is theirs
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="real-time signals")
def test_a_handler_is_installed_only_for_blocks_with_kill_after() -> None:
    run("""
        import signal
        import desist
        def handled():
            every = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
            return [n for n in every if signal.getsignal(n) is not signal.SIG_DFL]
        with desist.cancel_scope(timeout=1): pass
        assert handled() == []
        with desist.cancel_scope(timeout=1, kill_after=1): pass
        [ours] = handled()
        signal.raise_signal(ours)  # does nothing
        with desist.cancel_scope(timeout=1000, kill_after=1):
            signal.raise_signal(ours)
    """)


def test_a_process_may_end_while_a_block_is_watched() -> None:
    run("""
        import threading, time, desist
        threading.excepthook = lambda _: None  # the block may have been left before the end
        def body():
            with desist.cancel_scope(timeout=0, kill_after=0):
                started.set()
                while True:
                    try:
                        time.sleep(0.0001)
                    except BaseException:
                        pass
        started = threading.Event()
        threading.Thread(target=body, daemon=True).start()
        started.wait()
        time.sleep(0.03)
    """)


# --- other ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_i37_in_a_forked_child_nothing_is_left_armed() -> None:
    def child() -> str:
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            pass
        return "alive"

    with desist.cancel_scope(kill_after=0.02) as scope:
        reader, writer = os.pipe()
        pid = fork()
        if pid == 0:
            scope.cancel()
            try:
                answer = child()
            except BaseException as raised:  # noqa: BLE001 (it is the answer)
                answer = repr(raised)
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        assert answers.read() == "alive"
    os.waitpid(pid, 0)


def test_simulated_time_stands_still_while_a_block_ignores_its_deadline() -> None:
    def body() -> str:
        with desist.move_on_after(5, kill_after=1) as scope, desist.shield(NEVER):
            desist.sleep(50)
        assert not scope.cancelled_caught
        return "slept"

    assert testing.run(body) == "slept"


def test_a_decorated_function_keeps_its_attributes() -> None:
    class Thing:
        @desist.deadline(NEVER, kill_after=NEVER)
        def method(self, a: int, /, b: int, *, c: int = 3) -> tuple[int, int, int]:
            """Have a docstring."""
            return a, b, c

    assert Thing().method(1, b=2) == (1, 2, 3)
    assert Thing.method.__doc__ == "Have a docstring."
    assert str(inspect.signature(Thing.method)).startswith("(self, a: ")
    with pytest.raises(TypeError, match="missing"):
        Thing().method(1)  # type: ignore[call-arg]


def test_each_call_of_a_decorated_function_has_its_own_time() -> None:
    @desist.deadline(0.05)
    def sleep(seconds: float) -> None:
        desist.sleep(seconds)

    for _ in range(3):
        sleep(0.02)
    with pytest.raises(DeadlineExceeded):
        sleep(NEVER)


def test_generators_and_coroutines_cannot_be_decorated() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def coroutine() -> None:
        pass

    async def asynchronous() -> Any:
        yield 1

    for refused in (generator, coroutine, asynchronous):
        with pytest.raises(TypeError, match="whose call returns before its code runs"):
            desist.deadline(1)(refused)
    with pytest.raises(TypeError, match="the function must be callable, not int"):
        desist.deadline(1)(1)  # type: ignore[arg-type]


def test_killed_cannot_be_made_by_hand_in_a_block() -> None:
    block = desist.cancel_scope(timeout=NEVER, kill_after=NEVER)
    with block, pytest.raises(TypeError, match="by hand"):
        Killed()
