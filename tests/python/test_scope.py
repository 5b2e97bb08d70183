from __future__ import annotations

import gc
import math
import threading
import warnings
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import desist
from desist import Cancelled, CauseKind, DeadlineExceeded
from support import NEVER, DeafEvent, Victim, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

# --- the kinds of blocks --------------------------------------------------------------------------


def test_a_timeout_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded) as raised, desist.cancel_scope(timeout=0) as scope:
        desist.checkpoint()
    assert isinstance(raised.value, TimeoutError)
    assert isinstance(raised.value.__cause__, Cancelled)
    assert scope.cancelled_caught
    assert scope.cause is not None
    assert scope.cause.kind is CauseKind.DEADLINE


def test_a_cancel_is_no_error() -> None:
    with desist.cancel_scope(timeout=NEVER) as scope:
        assert scope.cancel("enough")
        assert not scope.cancel("again")
        desist.sleep(NEVER)
    assert scope.cancelled_caught
    assert scope.cause is not None
    assert (scope.cause.kind, scope.cause.reason) == (CauseKind.EXPLICIT, "enough")


def test_move_on_raises_in_neither_case() -> None:
    with desist.move_on_after(0) as after:
        desist.checkpoint()
    with desist.move_on_after(deadline=desist.current_time()) as at:
        desist.checkpoint()
    with desist.move_on_after(NEVER) as cancelled:
        cancelled.cancel()
        desist.checkpoint()
    assert after.cancelled_caught
    assert at.cancelled_caught
    assert cancelled.cancelled_caught


@pytest.mark.parametrize(
    "make",
    [
        lambda: desist.fail_after(0),
        lambda: desist.fail_after(deadline=desist.current_time()),
    ],
)
def test_fail_raises(make: Callable[[], desist.FailScope]) -> None:
    scope = make()
    with pytest.raises(DeadlineExceeded), scope:
        desist.checkpoint()
    assert scope.expired
    assert not hasattr(scope, "cancel")


@pytest.mark.parametrize("make", [desist.cancel_scope, desist.move_on_after, desist.fail_after])
def test_none_and_infinity_are_no_limit(make: Callable[..., Any]) -> None:
    for scope in (make(None), make(), make(deadline=None), make(math.inf), make(deadline=math.inf)):
        with scope:
            assert scope.deadline == math.inf
            assert desist.current_effective_deadline() == math.inf
            desist.checkpoint()


def test_a_block_that_ends_in_time_is_left_as_it_ends() -> None:
    with desist.cancel_scope(timeout=NEVER) as scope:
        desist.checkpoint()
    assert not scope.cancel_called
    assert not scope.cancelled_caught
    with pytest.raises(ZeroDivisionError), desist.cancel_scope(timeout=NEVER):
        raise ZeroDivisionError


def test_no_phantom_timeout() -> None:
    # The deadline passes, but interrupts nothing.
    with desist.cancel_scope(timeout=0) as scope:
        pass
    assert not scope.cancelled_caught
    # Another error takes precedence.
    with pytest.raises(ZeroDivisionError), desist.cancel_scope(timeout=0):
        raise ZeroDivisionError
    # The outer scope was cancelled first, so it absorbs the cancellation.
    with desist.move_on_after(NEVER) as outer:
        with desist.cancel_scope(timeout=NEVER) as inner:
            outer.cancel()
            inner.deadline = desist.current_time()
            desist.checkpoint()
        pytest.fail("the inner scope swallowed the outer scope's cancellation")
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


def test_the_earliest_deadline_counts() -> None:
    assert desist.current_effective_deadline() == math.inf
    with desist.cancel_scope(timeout=10) as outer:
        with desist.cancel_scope(timeout=20) as inner:
            assert desist.current_effective_deadline() == outer.deadline < inner.deadline
        with desist.cancel_scope(timeout=5) as inner:
            assert desist.current_effective_deadline() == inner.deadline
        with desist.shield(30) as inner:
            assert desist.current_effective_deadline() == inner.deadline


def test_a_deadline_counts_from_the_entry_and_can_be_moved() -> None:
    scope = desist.cancel_scope(timeout=10)
    entered = desist.current_time()
    with scope:
        assert 10 <= scope.deadline - entered <= 20
        scope.deadline = math.inf
        assert desist.current_effective_deadline() == math.inf
        scope.deadline = desist.current_time()
        with pytest.raises(Cancelled):
            desist.checkpoint()


def test_another_thread_can_move_the_deadline_of_a_block_that_waits() -> None:
    scope = desist.move_on_after(NEVER)

    def body(ready: Callable[[], None]) -> bool:
        with scope:
            ready()
            desist.sleep(NEVER)
        return scope.cancelled_caught

    with Victim(body) as victim:
        scope.deadline = desist.current_time()
    assert victim.results == [True]


def test_a_shield_hides_outer_cancellations_for_its_bound() -> None:
    reached = []
    with desist.move_on_after(0):
        with desist.shield(NEVER):
            desist.checkpoint()
            reached.append("inside")
        with desist.shield(0) as bound:
            desist.checkpoint()
        reached.append("behind")
        assert bound.cancelled_caught
        desist.checkpoint()
        reached.append("too far")
    assert reached == ["inside", "behind"]


def test_clean_up_has_the_grace_of_the_cancel() -> None:
    with desist.cancel_scope() as scope:
        scope.cancel(grace=7)
        assert scope.cause is not None
        with desist.cleanup() as first:
            desist.checkpoint()
        with desist.cleanup() as second:
            desist.checkpoint()
        assert first.deadline == second.deadline == pytest.approx(scope.cause.at + 7)
        desist.checkpoint()
    with desist.cancel_scope() as scope:
        scope.cancel(grace=0)
        with desist.cleanup() as zone:
            desist.checkpoint()
        assert zone.cancelled_caught


def test_clean_up_that_has_begun_ends_with_the_grace_of_a_later_cancel() -> None:
    with desist.cancel_scope() as scope:
        with desist.cleanup() as zone:
            desist.checkpoint()
            scope.cancel(grace=0)
            desist.sleep(NEVER)
        assert zone.cancelled_caught


def test_a_scope_that_is_cancelled_before_it_is_entered_is_left_at_once() -> None:
    scope = desist.move_on_after(NEVER)
    assert scope.cancel("early")
    with scope:
        desist.checkpoint()
        pytest.fail("not cancelled")
    assert scope.cancelled_caught
    assert not scope.cancel("late")


def test_a_token_of_a_scope_lets_other_threads_see_it() -> None:
    with desist.cancel_scope() as scope:
        token = scope.token
        child = desist.CancelSource(token)
        assert not desist.current_token().cancelled
        scope.cancel()
        assert token.cancelled
        assert desist.current_token().cancelled
        assert child.token.cancelled
    assert not desist.current_token().cancelled


def test_a_token_below_a_scope_is_cancelled_when_the_scope_is_left() -> None:
    with desist.cancel_scope() as scope:
        child = desist.CancelSource(scope.token)
    cause = child.token.cause
    assert cause is not None
    assert cause.kind is CauseKind.SCOPE_EXITED


def test_scopes_are_a_threads_own() -> None:
    with desist.move_on_after(NEVER) as scope:
        scope.cancel()
        in_thread(desist.checkpoint)
        assert in_thread(desist.current_effective_deadline) == math.inf


# --- swallowing -----------------------------------------------------------------------------------


def test_code_that_swallows_its_cancellation_gets_a_warning() -> None:
    with desist.move_on_after(0):
        with pytest.raises(Cancelled):
            desist.checkpoint()
        with pytest.warns(desist.CancelledSwallowedWarning, match="do not catch"):
            desist.checkpoint()


def test_a_loop_that_swallows_gets_one_warning_and_is_slowed_down() -> None:
    with desist.move_on_after(0), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        began = desist.current_time()
        for _ in range(15):
            with pytest.raises(Cancelled):
                desist.checkpoint()
        assert desist.current_time() - began > 0.015
    assert [one.category for one in told] == [desist.CancelledSwallowedWarning]
    assert told[0].filename == __file__


# --- misuse ---------------------------------------------------------------------------------------


def test_a_scope_left_out_of_order_is_closed_and_the_others_work() -> None:
    outer, inner = desist.cancel_scope(), desist.cancel_scope()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(desist.ScopeMisuse, match="reverse"):
        outer.__exit__(None, None, None)
    inner.cancel()
    with pytest.raises(Cancelled):
        desist.checkpoint()
    inner.__exit__(None, None, None)
    desist.checkpoint()
    assert desist.current_effective_deadline() == math.inf


def test_scopes_are_freed_when_they_are_left() -> None:
    with desist.cancel_scope(timeout=NEVER) as scope, desist.fail_after(NEVER) as timeout:
        token = scope.token
        gone: list[weakref.ref[Any]] = [*map(weakref.ref, (scope, timeout, token))]
    del scope, timeout, token
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_a_scope_in_a_dropped_generator_ends_with_it() -> None:
    def numbers() -> Any:
        with desist.move_on_after(NEVER):
            yield 1

    generator = numbers()
    next(generator)
    generator.close()
    assert desist.current_effective_deadline() == math.inf


# --- against a model ------------------------------------------------------------------------------
#
# Time does not pass in these programs: a deadline is far away or has passed, a grace is long or
# none. The Rust model (tests/rust/scope_model.rs) has a clock; this one tests the binding.

PLAIN, MOVE_ON, FAIL, SHIELD, CLEANUP = (
    "cancel_scope",
    "move_on_after",
    "fail_after",
    "shield",
    "cleanup",
)
KINDS = [PLAIN, MOVE_ON, FAIL, SHIELD, CLEANUP]


@dataclass(frozen=True)
class Block:
    kind: str
    late: bool
    """Its deadline has passed when it is entered."""
    body: tuple[Block | str | tuple[str, int], ...]


def programs() -> st.SearchStrategy[tuple[Block | str | tuple[str, int], ...]]:
    leaf = st.one_of(
        st.sampled_from(["look", "look", "swallow", "fail"]),
        st.tuples(st.sampled_from(["cancel", "cancel without grace", "expire"]), st.integers(0, 4)),
    )
    return st.recursive(
        st.lists(leaf, max_size=4).map(tuple),
        lambda inner: st.lists(
            st.one_of(leaf, st.builds(Block, st.sampled_from(KINDS), st.booleans(), inner)),
            max_size=5,
        ).map(tuple),
        max_leaves=12,
    )


class Stopped(Exception):
    """The model's Cancelled."""


@dataclass
class Frame:
    kind: str
    cause: str | None = None
    """"deadline" or "explicit"; the first cause stays."""
    grace: bool = True
    due: bool = False
    """Whether its deadline has passed."""


@dataclass
class Model:
    """The rules of scopes, with a list of frames and nothing else."""

    frames: list[Frame] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def visible(self, upto: int) -> list[Frame]:
        """The visible frames, the outermost last."""
        frames = []
        for frame in reversed(self.frames[:upto]):
            frames.append(frame)
            if frame.kind in (SHIELD, CLEANUP):
                break
        return frames

    def settle(self) -> None:
        """Turn passed deadlines into causes; a zone ends with the grace of a cancel outside."""
        for index, frame in enumerate(self.frames):
            if frame.cause is None and frame.kind == CLEANUP and self.spent(index):
                frame.due = True
            if frame.cause is None and frame.due:
                frame.cause = "deadline"

    def spent(self, index: int) -> bool:
        for frame in reversed(self.frames[:index]):
            if frame.kind == CLEANUP:
                if frame.due or (frame.cause is not None and not frame.grace):
                    return True
                continue
            if frame.cause is not None and not frame.grace:
                return True
            if frame.kind == SHIELD:
                break
        return False

    def look(self) -> None:
        self.settle()
        if any(frame.cause for frame in self.visible(len(self.frames))):
            raise Stopped

    def block(self, block: Block) -> None:
        self.frames.append(Frame(block.kind, due=block.late))
        self.settle()
        raised: Exception | None = None
        try:
            self.steps(block.body)
        except Exception as error:  # noqa: BLE001 (looked at below)
            raised = error
        self.settle()
        cancelled = [frame for frame in self.visible(len(self.frames)) if frame.cause]
        frame = self.frames.pop()
        if isinstance(raised, Stopped) and cancelled and cancelled[-1] is frame:
            self.seen.append(f"{frame.kind} absorbs {frame.cause}")
            raised = None
            if frame.cause == "deadline" and frame.kind in (PLAIN, FAIL):
                raise TimeoutError
        else:
            self.seen.append(f"{frame.kind} passes {type(raised).__name__ if raised else None}")
        if raised:
            raise raised

    def steps(self, steps: tuple[Block | str | tuple[str, int], ...]) -> None:
        for step in steps:
            if isinstance(step, Block):
                try:
                    self.block(step)
                except TimeoutError:
                    self.seen.append("timed out")
            elif isinstance(step, tuple):
                self.act(*step)
            elif step == "fail":
                raise ZeroDivisionError
            else:
                try:
                    self.look()
                    self.seen.append("goes on")
                except Stopped:
                    self.seen.append("stops")
                    if step == "look":
                        raise

    def act(self, what: str, up: int) -> None:
        if up >= len(self.frames):
            return
        frame = self.frames[-1 - up]
        self.settle()
        if what == "expire":
            if frame.cause is None:
                frame.due = True
        elif frame.kind != FAIL:
            if frame.cause is None:
                frame.cause = "explicit"
            if what != "cancel":  # by a later cancel, too
                frame.grace = False


@dataclass
class Real:
    """The same programs, run with the real scopes."""

    scopes: list[Any] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def steps(self, steps: tuple[Block | str | tuple[str, int], ...]) -> None:
        for step in steps:
            if isinstance(step, Block):
                try:
                    self.block(step)
                except DeadlineExceeded:
                    self.seen.append("timed out")
            elif isinstance(step, tuple):
                self.act(*step)
            elif step == "fail":
                raise ZeroDivisionError
            else:
                try:
                    desist.sleep(0)
                    self.seen.append("goes on")
                except Cancelled:
                    self.seen.append("stops")
                    if step == "look":
                        raise

    def block(self, block: Block) -> None:
        make = getattr(desist, block.kind)
        scope = make(0.0 if block.late else NEVER)
        passing = "None"
        try:
            with scope:
                self.scopes.append(scope)
                try:
                    self.steps(block.body)
                except BaseException as raised:
                    passing = type(raised).__name__.replace("Cancelled", "Stopped")
                    raise
                finally:
                    self.scopes.pop()
        finally:
            caught = scope.expired if block.kind == FAIL else scope.cancelled_caught
            if caught:
                kind = "deadline" if block.kind == FAIL else scope.cause.kind.value
                self.seen.append(f"{block.kind} absorbs {kind}")
            else:
                self.seen.append(f"{block.kind} passes {passing}")

    def act(self, what: str, up: int) -> None:
        if up >= len(self.scopes):
            return
        scope = self.scopes[-1 - up]
        if what == "expire":
            scope.deadline = desist.current_time()
        elif hasattr(scope, "cancel"):
            scope.cancel(grace=NEVER if what == "cancel" else 0)
            wait_for_callbacks()


def wait_for_callbacks() -> None:
    """Let callbacks of deadlines run, which end clean-up zones; they have a thread of their own."""
    ran = DeafEvent()  # the scope is cancelled when it is set
    with desist.cancel_scope(NEVER) as scope:
        scope.token.on_cancel(lambda _: ran.set())
        scope.deadline = desist.current_time()
        ran.wait()


@settings(max_examples=400, deadline=None)
@example((Block("cleanup", False, (Block("cleanup", False, (("expire", 1), "look")),)),))
@example(
    (Block("cleanup", False, (("cancel without grace", 0), Block("cleanup", False, ("look",)))),)
)
@example(
    (Block("cleanup", False, (Block("cleanup", False, (("cancel without grace", 1), "look")),)),)
)
@example(
    (
        Block(
            "cancel_scope",
            True,
            (Block("cleanup", False, (("cancel without grace", 1), "look")),),
        ),
    )
)
@given(programs())
def test_scopes_behave_as_the_model(
    program: tuple[Block | str | tuple[str, int], ...],
) -> None:
    model, real = Model(), Real()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", desist.CancelledSwallowedWarning)
        end = [outcome(model, program, Stopped), outcome(real, program, Cancelled)]
    assert model.seen == real.seen
    assert end[0] == end[1]
    assert desist.current_effective_deadline() == math.inf


def outcome(machine: Model | Real, program: Any, stop: type[BaseException]) -> str:
    try:
        machine.steps(program)
    except stop:
        return "stopped"
    except (TimeoutError, ZeroDivisionError) as raised:
        return type(raised).__name__
    return "done"


def test_a_thread_that_dies_inside_a_scope_leaves_nothing_open() -> None:
    entered = threading.Event()

    def enter_only() -> None:
        desist.cancel_scope(timeout=NEVER).__enter__()
        entered.set()

    in_thread(enter_only)
    assert entered.is_set()
    desist.checkpoint()
