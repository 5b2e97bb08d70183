"""CPython's own tests of `threading` and `queue`, run with desist's classes in their place.

The tests are those of the running interpreter, imported from its `test` package; a test module
is executed anew, and its `import threading` finds an overlay: the module itself, with some names
replaced. So whatever the tests name, also in their helpers, is desist's.

Another module needs an overlay and exclusions:

    module = load("test.test_queue", {"queue": Overlay("queue", Queue=desist.Queue)})
    globals().update(adopt(module, EXCLUDED))

To find exclusions of tests that no interpreter has any more, run by hand:

    python tests/python/cpython.py python3.11 python3.12 python3.13 python3.14
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import subprocess
import sys
import types
import unittest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import desist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

HERE = Path(__file__).parent


class Overlay(types.ModuleType):
    """A module of the standard library with some of its names replaced.

    Attributes set on it are set on the module: tests replace hooks and counters.
    """

    def __init__(self, name: str, **replaced: object) -> None:
        super().__init__(name)
        below = importlib.import_module(name)
        self.__dict__.update(replaced, _below=below, __doc__=below.__doc__)
        self.__dict__.pop("__spec__")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_below"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["_below"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__dict__["_below"], name)


def of_desist(*names: str) -> dict[str, object]:
    """Give desist's objects of these names."""
    return {name: getattr(desist, name) for name in names}


THREADING = Overlay(
    "threading",
    **of_desist("Thread", "Timer", "Lock", "RLock", "Condition", "Event", "Barrier"),
    **of_desist("Semaphore", "BoundedSemaphore"),
    _CRLock=desist.RLock,
)
QUEUE = Overlay(
    "queue",
    **of_desist("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue", "ShutDown"),
)


def import_or_skip(name: str) -> types.ModuleType:
    """Import a test module; distributions may leave the tests out, or package them separately."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise unittest.SkipTest(f"this interpreter ships no {name} ({error})") from None


def load(name: str, overlays: Mapping[str, types.ModuleType]) -> types.ModuleType:
    """Execute the module again; its imports of overlaid names give the overlays.

    No other module is affected. Raises unittest.SkipTest if the interpreter lacks the module.
    """
    import_or_skip(name)  # its dependencies are installed, and belong to the standard library

    def import_overlaid(
        wanted: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 (as the builtin has it)
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> types.ModuleType:
        module = __import__(wanted, globals, locals, fromlist, level)
        if fromlist or "." not in wanted:
            found, names = wanted, fromlist or ()
        else:  # `import a.b` is about b, but has a
            found, *names = wanted.split(".")[:2]
        if found in overlays:
            return overlays[found]
        inside = {one: overlays.get(f"{found}.{one}") for one in names}
        inside = {one: overlay for one, overlay in inside.items() if overlay is not None}
        return Overlay(found, **inside) if inside else module

    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_overlaid}
    spec.loader.exec_module(module)
    return module


def threading_tests() -> types.ModuleType:
    """The interpreter's tests of `threading`, among them those of `test.lock_tests`."""
    threading = {"threading": THREADING}
    helpers = import_or_skip("test.support.script_helper")
    support = import_or_skip("test.support")
    scripts = {
        "test.support": Overlay(
            "test.support", run_in_subinterp=with_desist(support.run_in_subinterp)
        ),
        "test.support.script_helper": Overlay(
            helpers.__name__,
            assert_python_ok=with_desist(helpers.assert_python_ok),
            assert_python_failure=with_desist(helpers.assert_python_failure),
        ),
        "subprocess": Overlay("subprocess", Popen=with_desist(subprocess.Popen)),
    }
    lock_tests = {"test.lock_tests": load("test.lock_tests", threading)}
    return load("test.test_threading", threading | scripts | lock_tests)


def queue_tests() -> types.ModuleType:
    """The interpreter's tests of `queue`."""
    return load("test.test_queue", {"threading": THREADING})


def subprocess_tests() -> types.ModuleType:
    """test.test_subprocess, with desist's functions and Popen."""
    names = ("Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput")
    ours = {name: getattr(desist.subprocess, name) for name in names}
    return load("test.test_subprocess", {"subprocess": Overlay("subprocess", **ours)})


def executor_tests() -> list[types.ModuleType]:
    """The interpreter's tests of `concurrent.futures`, in one module or many."""
    futures = {
        "concurrent.futures": Overlay(
            "concurrent.futures", ThreadPoolExecutor=desist.ThreadPoolExecutor
        )
    }
    package = "test.test_concurrent_futures"
    helpers = import_or_skip("test.support.script_helper")
    python_ok = with_desist(helpers.assert_python_ok, "install_executor")
    scripts = {helpers.__name__: Overlay(helpers.__name__, assert_python_ok=python_ok)}
    if not hasattr(import_or_skip(package), "__path__"):
        return [load(package, futures | scripts)]
    # A relative import of one module by another is looked up by its last name.
    inside = {name: load(f"{package}.{name}", futures) for name in ("util", "executor")}
    return [
        load(f"{package}.{name}", futures | scripts | inside)
        for name in (
            "test_thread_pool",
            "test_shutdown",
            "test_init",
            "test_as_completed",
            "test_wait",
        )
    ]


def with_desist(run: Callable[..., Any], install: str = "install") -> Callable[..., Any]:
    """Let the script of an interpreter that `run` starts, after a `-c` or alone, find desist."""
    first = f"import sys; sys.path.insert(0, {str(HERE)!r}); import cpython; cpython.{install}()\n"

    def start(*args: Any, **kwargs: Any) -> Any:
        *before, last = args
        line = [*before, *last] if isinstance(last, list) else [*args]
        script = line.index("-c") + 1 if "-c" in line else 0
        line[script] = first + line[script]
        return run(line, **kwargs) if isinstance(last, list) else run(*line, **kwargs)

    return start


def install() -> None:
    """Make every later import of `threading` give desist's classes."""
    sys.path.remove(str(HERE))
    sys.modules["threading"] = THREADING


def install_executor() -> None:
    """Make concurrent.futures.ThreadPoolExecutor desist's from now on."""
    import concurrent.futures

    sys.path.remove(str(HERE))
    concurrent.futures.ThreadPoolExecutor = desist.ThreadPoolExecutor  # type: ignore[misc]


def adopt(
    module: types.ModuleType, excluded: Mapping[str, str], **attributes: object
) -> dict[str, type[Any]]:
    """Give the test cases of the module to pytest, with these attributes.

    `excluded` has the reason why a test, or a whole class, is not run. A name in it may be absent
    from this version.
    """
    import pytest

    cases: dict[str, type[unittest.TestCase]] = {}
    for name, case in cases_of(module).items():
        if name in excluded:
            continue
        inside: dict[str, Any] = {"__module__": module.__name__, **attributes}
        # The tests handle warnings themselves, and differently in each version.
        inside["pytestmark"] = pytest.mark.filterwarnings("default")
        for test in unittest.defaultTestLoader.getTestCaseNames(case):
            reason = excluded.get(f"{name}.{test}")
            if reason is not None:
                inside[test] = unittest.skip(reason)(getattr(case, test))
        cases[name] = type(name, (case,), inside)
    return cases


def cases_of(module: types.ModuleType) -> dict[str, type[unittest.TestCase]]:
    """List the cases that unittest would run."""
    return {
        name: thing
        for name, thing in vars(module).items()
        if isinstance(thing, type)
        and issubclass(thing, unittest.TestCase)
        and unittest.defaultTestLoader.getTestCaseNames(thing)
    }


NAMES = """
import importlib, unittest
futures = "test.test_concurrent_futures"
inside = ("thread_pool", "shutdown", "init", "as_completed", "wait")
inside = [f"{futures}.test_{name}" for name in inside]
for name in ("test.test_threading", "test.test_queue", "test.test_subprocess", futures, *inside):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    for case in vars(module).values():
        if isinstance(case, type) and issubclass(case, unittest.TestCase):
            print(case.__name__)
            for test in unittest.defaultTestLoader.getTestCaseNames(case):
                print(f"{case.__name__}.{test}")
"""


def main(interpreters: Iterable[str]) -> None:
    """Report exclusions of tests that none of the interpreters has."""
    import test_cpython_executor
    import test_cpython_queue
    import test_cpython_subprocess
    import test_cpython_threading

    known: set[str] = set()
    for interpreter in interpreters:
        names = subprocess.run([interpreter, "-c", NAMES], stdout=subprocess.PIPE, check=True)
        known |= set(names.stdout.decode().split())
    tables = (
        test_cpython_executor,
        test_cpython_queue,
        test_cpython_subprocess,
        test_cpython_threading,
    )
    excluded = [name for table in tables for name in table.EXCLUDED]
    stale = [f"{name}: excluded, but in none of them" for name in excluded if name not in known]
    sys.exit("\n".join(stale) or 0)


if __name__ == "__main__":
    main(sys.argv[1:])
