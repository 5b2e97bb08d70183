"""CPython's own tests of ThreadPoolExecutor, with desist's in its place."""

from __future__ import annotations

import cpython
import desist

EXCLUDED: dict[str, str] = {}
modules = cpython.executor_tests()
cases = {
    name: case
    for module in modules
    for name, case in cpython.adopt(module, EXCLUDED).items()
    # The other cases are about pools of processes and interpreters.
    if name.startswith("ThreadPool")
}
globals().update(cases)


def test_the_tests_use_desist() -> None:
    assert len(cases) >= 5
    for case in cases.values():
        assert case.executor_type is desist.ThreadPoolExecutor


def test_their_scripts_use_desist_too() -> None:
    (python_ok,) = {
        vars(module)["assert_python_ok"]
        for module in modules
        if hasattr(module, "assert_python_ok")
    }
    code = "from concurrent.futures import ThreadPoolExecutor; print(ThreadPoolExecutor.__module__)"
    _, out, _ = python_ok("-c", code)
    assert out.split() == [b"desist._executor"]
