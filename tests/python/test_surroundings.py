"""Subinterpreters, and processes that gevent or eventlet has patched."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(script: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# --- subinterpreters ------------------------------------------------------------------------------

INTERPRETERS = """
import sys
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    def create(isolated):
        return interpreters.create("isolated" if isolated else "legacy")
    def failure(which, code):
        failed = interpreters.exec(which, code)
        return failed and failed.formatted
else:
    import _xxsubinterpreters as interpreters
    def create(isolated):
        return interpreters.create(isolated=isolated)
    def failure(which, code):
        try:
            interpreters.run_string(which, code)
        except interpreters.RunFailedError as failed:
            return str(failed)

def use():
    import desist
    try:
        with desist.fail_after(0.001):
            desist.sleep(100)
    except desist.DeadlineExceeded:
        pass
    with desist.TaskGroup() as group, desist.Lock():
        group.start_soon(len, "")
    with desist.WorkerPool(lambda lease: lease.item, workers=1) as pool:
        pool.submit(1).result()
"""


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("first", ["use()", ""])
@pytest.mark.parametrize("module", ["desist", "desist._core", "desist._pool"])
def test_i44_a_subinterpreter_is_refused_and_the_main_one_goes_on(
    isolated: bool, first: str, module: str
) -> None:
    out, err = run(f"""{INTERPRETERS}
{first}
for _ in range(2):
    other = create({isolated})
    print(failure(other, "import {module}"))
    print(failure(other, "import {module}"))
    use()
    interpreters.destroy(other)
    use()
""")
    assert err == ""
    for line in (lines := out.splitlines()):
        assert "ImportError" in line
        assert "Use it in the main interpreter" in line  # without loading the extension
    assert len(lines) == 4


# --- gevent and eventlet --------------------------------------------------------------------------

PATCHED = """
import sys, types, warnings
warnings.simplefilter("always")

def library(name, asked, part):
    module = types.ModuleType(name)
    setattr(module, asked, lambda asked_for: asked_for == part and patched)
    sys.modules[name] = module

def gevent():
    library("gevent.monkey", "is_module_patched", "threading")

def eventlet():
    library("eventlet.patcher", "is_monkey_patched", "thread")

patched = True
"""


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        ("gevent", "gevent.get_hub().threadpool.apply(function)"),
        ("eventlet", "eventlet.tpool.execute(function)"),
    ],
)
@pytest.mark.parametrize(
    "order",
    [
        "{library}(); import desist; {work}",
        "import desist; {work}; {library}(); {work}",
    ],
    ids=["before the import", "after the import"],
)
@pytest.mark.parametrize(
    "work",
    [
        "desist.sleep(0.001)",
        "thread = desist.Thread(target=int); thread.start(); thread.join()",
        "desist.WorkerPool(int).stop()",
    ],
)
def test_a_patched_process_is_told_once(library: str, advice: str, order: str, work: str) -> None:
    script = order.format(library=library, work=f"{work}; {work}")
    _, err = run(PATCHED + script)
    assert err.count("RuntimeWarning") == 1
    assert f"{library} has patched this process" in err
    assert advice in err


def test_a_library_that_has_patched_nothing_is_no_reason_to_warn() -> None:
    _, err = run(PATCHED + "patched = False; gevent(); import desist; desist.sleep(0.001)")
    assert err == ""


def test_a_library_that_is_half_imported_is_left_alone() -> None:
    _, err = run(
        PATCHED + "gevent(); del sys.modules['gevent.monkey'].is_module_patched\nimport desist"
    )
    assert err == ""


def test_a_filter_that_makes_the_warning_an_error_stops_no_wait() -> None:
    out, err = run(f"""{PATCHED}
import desist
warnings.simplefilter("error")
gevent()
desist.sleep(0.001)
print("went on")
""")
    assert out == "went on\n"
    assert err.count("RuntimeWarning: gevent has patched") == 1
