"""Sweeps: one run of some code for each bytecode at which it can be stopped.

Guarantees: a run is stopped in front of exactly one bytecode, chosen by its number; the code that
watches is native (`_Injector`), so that it is not stopped itself.

How: each run is a task on a new thread, under a tracer (before 3.12) or sys.monitoring, which
counts bytecodes. Two runs without a stop tell how many there are. One sweep at a time (`_busy`),
for tracers, the garbage collector and sys.unraisablehook are the process's.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from desist._core import Cancelled, Killed, Latch, StopPolicy, Task, _Injector, check_runnable
from desist._exceptions import SweepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NOTHING: Any = object()
_TRIES = 3
_ABANDON = StopPolicy(cooperative=0.1, at_wait=0.1, async_exc=0.2, trace=None, defer=0)
"""For a run that hangs: end it or abandon it, so that it does not disturb later code."""

_busy = threading.Lock()


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep: how many runs it had, and how they ended."""

    points: int
    """Bytecodes in front of which a run was stopped."""
    stopped: int
    """Runs that ended with Killed, or Cancelled."""
    swallowed: int
    """Runs in which Killed was raised, and the code caught it and went on."""
    finished: int
    """Runs that ended before it could be raised. Of cancels, also those that swallowed it; of kills
    of blocks, all."""
    missed: int
    """Points that no run reached, because the number of bytecodes varies."""

    def __str__(self) -> str:
        """In one line."""
        parts = [f"{self.stopped} stopped", f"{self.finished} finished"]
        parts += [f"{self.swallowed} swallowed"] * bool(self.swallowed)
        parts += [f"{self.missed} missed"] * bool(self.missed)
        return f"{self.points} points: {', '.join(parts)}"


@dataclass(frozen=True)
class Sweep:
    """The code of a sweep, and how it is stopped; see testing.sweep_kills()."""

    fn: Callable[..., object]
    check: Callable[..., object] | None
    setup: Callable[[], object]
    victims: Literal["fn", "started"]
    only: int | None
    limit: int
    timeout: float
    cancels: bool = False
    defer: bool = False
    block: int | None = None
    trace: bool = False

    def run(self) -> SweepReport:
        """Do all runs."""
        if self.victims not in {"fn", "started"}:
            message = f"victims must be 'fn' or 'started', not {self.victims!r}"
            raise ValueError(message)
        for name, function in (("fn", self.fn), ("check", self.check), ("setup", self.setup)):
            if function is not None:
                check_runnable(function, name)
        if not _busy.acquire(blocking=False):
            raise RuntimeError("a sweep is running; there can be one at a time in a process")
        try:
            return self._at_all_points() if self.only is None else self._at_one(self.only)
        finally:
            _busy.release()

    def _at_one(self, only: int) -> SweepReport:
        if only < 1:
            message = f"only must be at least 1, not {only}: bytecodes are counted from 1"
            raise ValueError(message)
        bytecodes = self._trial(0).passed
        injector = self._trial(only)
        if injector.outcome is None:
            message = f"there is no bytecode {only}: fn took {bytecodes}"
            raise ValueError(message)
        return _count([injector.outcome], missed=0)

    def _at_all_points(self) -> SweepReport:
        # The first run also imports, fills caches, and the like.
        bytecodes = [self._trial(0).passed for _ in range(2)][-1]
        if not bytecodes:
            whose = "the code that fn starts" if self.victims == "started" else "fn"
            message = f"there is nothing to sweep: {whose} takes no bytecode, as a task"
            raise ValueError(message)
        if bytecodes > self.limit:
            message = (
                f"fn takes {bytecodes} bytecodes, and would run as often; give it less to do, or "
                f"raise the limit, which is {self.limit}"
            )
            raise ValueError(message)
        outcomes: list[str] = []
        missed = point = 0
        while point < self.limit:
            point += 1
            # Not every run takes as many, if threads or the time play a part.
            outcome = next(filter(None, (self._trial(point).outcome for _ in range(_TRIES))), None)
            if outcome is not None:
                outcomes.append(outcome)
            elif point > bytecodes:
                break
            else:
                missed += 1
        return _count(outcomes, missed)

    def _trial(self, point: int) -> _Injector:
        """Do one run, stopped in front of that bytecode (0: of none), and check it."""
        state = self.setup()
        arguments = () if state is _NOTHING else (state,)
        task = Task("sweep")
        injector = _Injector(
            point,
            task,
            started=self.victims == "started",
            cancels=self.cancels,
            defer=self.defer,
            block=self.block,
            trace=self.trace,
        )
        try:
            self._perform(partial(self.fn, *arguments) if arguments else self.fn, task, injector)
        except _Failed as failure:
            raise self._error(failure.what, point, injector) from failure.__cause__
        if self.check is None:
            return injector
        try:
            verdict = self.check(*arguments)
        except (KeyboardInterrupt, SystemExit, Cancelled, Killed):
            raise  # meant for the caller
        except BaseException as failure:  # pytest.fail() is no Exception
            raise self._error("check failed", point, injector) from failure
        if verdict is False:
            raise self._error("check returned False", point, injector)
        return injector

    def _perform(self, body: Callable[[], object], task: Task, injector: _Injector) -> None:
        """Run the body as a task, on a thread of its own."""
        over = Latch()
        raised: list[BaseException] = []

        def target() -> None:
            sys.setprofile(None)
            sys.settrace(None if _MONITORED else injector)  # type: ignore[arg-type]
            try:
                task.run(body)
            except BaseException as failure:  # noqa: BLE001 (the caller decides about it)
                raised.append(failure)
            finally:
                sys.settrace(None)
                over.set()

        thread = threading.Thread(target=target, name="sweep", daemon=True)
        task.launch()
        with _watched(injector):
            thread.start()
            try:
                ended = over.wait(self.timeout)
            except BaseException:
                task.kill("the sweep was stopped", policy=_ABANDON)
                raise
        if not ended:
            stack = _stack_of(thread)
            task.kill("the run hung", policy=_ABANDON)
            message = f"fn has not ended within {self.timeout:g} s; it was at\n{stack}"
            raise _Failed(message)
        thread.join()
        for failure in raised:
            if isinstance(failure, Cancelled | Killed):
                raise _Failed("it was stopped after its end") from failure
            raise _Failed("fn failed") from failure

    def _error(self, what: str, point: int, injector: _Injector) -> SweepError:
        place = injector.place
        if place is None:
            return SweepError(
                f"{what}, though nothing has stopped the code",
                point=0,
                function="",
                filename="",
                line=0,
                offset=0,
            )
        code, offset = place
        line = _line_of(code, offset)
        name = getattr(code, "co_qualname", code.co_name)  # 3.10 has none
        deed = "cancelled" if self.cancels else "killed"
        where = f"{name}(), {code.co_filename}:{line}, offset {offset} ({_operation(code, offset)})"
        lines = [
            what,
            f"{deed} in front of bytecode {point}: {where}",
            f"only={point} runs this one alone",
        ]
        if injector.stack:
            lines.append(f"Killed was raised at\n{injector.stack.rstrip()}")
        return SweepError(
            "\n".join(lines),
            point=point,
            function=name,
            filename=code.co_filename,
            line=line,
            offset=offset,
        )


class _Failed(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def nothing() -> object:
    """The default of `setup`: the runs have no state."""
    return _NOTHING


def _count(outcomes: list[str], missed: int) -> SweepReport:
    return SweepReport(
        points=len(outcomes),
        stopped=outcomes.count("stopped"),
        swallowed=outcomes.count("swallowed"),
        finished=outcomes.count("finished"),
        missed=missed,
    )


# --- where it was ---------------------------------------------------------------------------------


def _line_of(code: Any, offset: int) -> int:
    lines = (line for begin, end, line in code.co_lines() if begin <= offset < end)
    return next(lines, None) or code.co_firstlineno  # type: ignore[no-any-return]


def _operation(code: Any, offset: int) -> str:
    names = (step.opname for step in dis.get_instructions(code) if step.offset == offset)
    return next(names, "?")


def _stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 (there is no public way)
    # Without the GIL the callers of a frame may be gone while this thread looks at them.
    limit = None if getattr(sys, "_is_gil_enabled", lambda: True)() else 1
    return "".join(traceback.format_stack(frame, limit)).rstrip() if frame else ""


# --- how it is watched ----------------------------------------------------------------------------

_MONITORED = sys.version_info >= (3, 12)
_TOOLS = (4, 3, 5, 2, 1, 0)  # ids that sys.monitoring reserves for no purpose come first


@contextmanager
def _watched(injector: _Injector) -> Iterator[None]:
    """Have the injector called at every bytecode of every new thread."""
    with ExitStack() as stack:
        stack.enter_context(_no_other_tracer(injector))
        stack.enter_context(_no_finalizers_told())
        if _MONITORED:
            stack.enter_context(_monitored(injector))
        yield


@contextmanager
def _no_other_tracer(injector: _Injector) -> Iterator[None]:
    """Keep coverage and debuggers out of the victim: their Python code would be stopped in it."""
    before = threading.gettrace(), threading.getprofile()
    threading.settrace(None if _MONITORED else injector)  # type: ignore[arg-type]
    threading.setprofile(None)
    try:
        yield
    finally:
        threading.settrace(before[0])
        threading.setprofile(before[1])


@contextmanager
def _no_finalizers_told() -> Iterator[None]:
    """Keep finalizers of other code out of the victim: no garbage is collected meanwhile.

    A finalizer of the victim's own that is killed cannot let the exception pass. Python reports
    that, but it is no error of the code.
    """
    collects, report = gc.isenabled(), sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs, /) -> None:
        if not issubclass(unraisable.exc_type, Cancelled | Killed):
            report(unraisable)

    gc.disable()
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = report
        if collects:
            gc.enable()


@contextmanager
def _monitored(injector: _Injector) -> Iterator[None]:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    event = monitoring.events.INSTRUCTION
    tool = next((tool for tool in _TOOLS if monitoring.get_tool(tool) is None), None)
    if tool is None:
        raise RuntimeError("a sweep needs a tool id of sys.monitoring, and all are taken")
    monitoring.use_tool_id(tool, "desist sweep")
    try:
        monitoring.register_callback(tool, event, injector)
        with _no_other_monitoring(monitoring, tool):
            monitoring.set_events(tool, event)
            # Code for which a kill has set events, and removed them, has lost those of other tools.
            monitoring.restart_events()
            yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)


@contextmanager
def _no_other_monitoring(monitoring: Any, own: int) -> Iterator[None]:
    """Keep other tools from setting events for code of the victim, which loses the sweep's then."""
    names = {tool: monitoring.get_tool(tool) for tool in _TOOLS if tool != own}
    events = {tool: monitoring.get_events(tool) for tool, name in names.items() if name}
    others = [tool for tool, before in events.items() if before]
    for tool in others:
        monitoring.set_events(tool, 0)
    try:
        yield
    finally:
        for tool in others:
            if monitoring.get_tool(tool) == names[tool]:
                monitoring.set_events(tool, events[tool])
