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
    # The others are about pools of processes and interpreters.
    if name.startswith("ThreadPool")
}
globals().update(cases)


def test_they_are_pointed_at_desist() -> None:
    assert len(cases) >= 5
    for case in cases.values():
        assert case.executor_type is desist.ThreadPoolExecutor


def test_so_are_their_scripts() -> None:
    (python_ok,) = {
        vars(module)["assert_python_ok"]
        for module in modules
        if hasattr(module, "assert_python_ok")
    }
    code = "from concurrent.futures import ThreadPoolExecutor; print(ThreadPoolExecutor.__module__)"
    _, out, _ = python_ok("-c", code)
    assert out.split() == [b"desist._executor"]
