"""Fixtures of all tests, and the check that the extension is not older than its source."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Run = Callable[[Callable[[], Awaitable[object]]], Any]

ROOT = Path(__file__).parents[2]
FIGURES = ("points", "stopped", "swallowed", "finished", "missed")


def pytest_configure() -> None:
    """Refuse to test a binary that is older than its source."""
    # A command that a shell runs in the background ignores Ctrl-C, and its children inherit that;
    # some tests need the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        from desist import _core
    except ImportError as error:
        refuse(f"desist is not built for this interpreter ({error})")
    # The build sets the time of the module to its own start, see the Makefile. A file that was
    # moved into place keeps its mtime but has a new ctime.
    assert _core.__file__ is not None
    built = Path(_core.__file__).stat().st_mtime
    for source in [ROOT / "Cargo.toml", *sorted(ROOT.glob("src/**/*.rs"))]:
        stat = source.stat()
        if max(stat.st_mtime, stat.st_ctime) > built:
            refuse(f"{source.relative_to(ROOT)} is newer than {_core.__file__}")


def pytest_collection_finish() -> None:
    """Hide the collected tests from the garbage collector: many tests collect again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of swept points; the table of the sweeps, unless -q asks to be quiet."""
    from support import SWEPT

    if not SWEPT:
        return
    points, stopped = (sum(getattr(report, name) for _, report in SWEPT) for name in FIGURES[:2])
    if terminalreporter.config.option.verbose >= 0:
        terminalreporter.section("sweeps")
        terminalreporter.line(f"{'':56}" + "".join(f"{name:>10}" for name in FIGURES))
        for subject, report in sorted(SWEPT, key=lambda row: row[0]):
            figures = (getattr(report, name) for name in FIGURES)
            terminalreporter.line(f"{subject:56}" + "".join(f"{n:10,}" for n in figures))
    terminalreporter.line(f"{len(SWEPT)} sweeps: {points:,} points, {stopped:,} runs stopped")


def refuse(why: str) -> NoReturn:
    """End the run before it starts."""
    advice = f"{why}. Run `make test`, which builds first."
    pytest.exit(advice, returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(autouse=True)
def _no_tracer_is_left() -> Iterator[None]:
    """Remove the tracer of new threads, which one of CPython's own tests leaves installed.

    On CPython 3.11 a traced thread that calls a function spins for as long as any thread has a
    pending asynchronous exception that it does not raise: the next test would hang.
    """
    before = threading.gettrace()
    yield
    threading.settrace(before)


@pytest.fixture
def no_tool_is_free() -> Iterator[None]:
    """Take all tool ids of sys.monitoring, as a debugger, a profiler and others do."""
    monitoring: Any = getattr(sys, "monitoring", None)
    taken = [] if monitoring is None else [n for n in range(6) if monitoring.get_tool(n) is None]
    for tool in taken:
        monitoring.use_tool_id(tool, "another")
    yield
    for tool in taken:
        monitoring.free_tool_id(tool)


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine function in one event loop; anyio's tasks and scopes are the loop's own."""
    import anyio

    library = request.param
    if library != "asyncio":
        pytest.importorskip(library, reason=f"{library} is not installed")
    options = {"use_uvloop": True} if library == "uvloop" else {}
    backend = "trio" if library == "trio" else "asyncio"
    return lambda main: anyio.run(main, backend=backend, backend_options=options)
