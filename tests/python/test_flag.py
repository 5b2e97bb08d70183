"""A loop in Cython, without the GIL, that stops when its token is cancelled."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import time
from typing import TYPE_CHECKING

import pytest

import desist
from desist import testing
from support import NEVER, Victim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KERNEL = """
# cython: language_level=3, freethreading_compatible=True
cdef extern from "desist.h" nogil:
    bint desist_is_cancelled(const void *flag)


def spin(size_t flag):
    cdef unsigned long long turns = 0
    with nogil:
        while not desist_is_cancelled(<const void *> flag):
            turns += 1
    return turns
"""

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], int]:
    folder: Path = tmp_path_factory.mktemp("kernel")
    kernel, source, library = (folder / f"kernel.{kind}" for kind in ("pyx", "c", "so"))
    kernel.write_text(KERNEL)
    subprocess.run([sys.executable, "-m", "cython", kernel, "-o", source], check=True)
    assert COMPILER
    headers = ["-I", desist.get_include(), "-I", sysconfig.get_path("include")]
    command: list[str | Path] = [COMPILER, "-O1", "-shared", "-fPIC", *headers]
    subprocess.run([*command, "-o", library, source], check=True)
    spec = importlib.util.spec_from_file_location("kernel", library)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[int], int] = module.spin
    return function


def test_the_header_is_plain_c(tmp_path: Path) -> None:
    source = tmp_path / "header.c"
    source.write_text("#include <desist.h>\nint unused;\n")
    warn = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c99"]
    assert COMPILER
    command = [COMPILER, *warn, "-fsyntax-only", "-I", desist.get_include(), str(source)]
    subprocess.run(command, check=True)


def test_a_native_loop_stops_within_a_millisecond_of_cancel(spin: Callable[[int], int]) -> None:
    took = []
    for _ in range(21):
        source = desist.CancelSource()
        token = source.token

        def body(ready: Callable[[], None], flag: int = token.flag) -> float:
            ready()
            assert spin(flag) >= 0
            return time.perf_counter()

        with Victim(body) as looper:
            cancelled_at = time.perf_counter()
            source.cancel()
        took.append(looper.results[0] - cancelled_at)
    # The best quarter, so that other load on the machine does not decide.
    assert sorted(took)[len(took) // 4] < 1e-3


def test_a_deadline_stops_it_too(spin: Callable[[int], int]) -> None:
    source = desist.CancelSource(timeout=0.01)
    child = desist.CancelSource(source.token, timeout=NEVER)
    assert spin(child.token.flag) > 0
    assert child.token.cause  # `cancelled` is written by the timer's thread a moment later


def test_a_flag_that_is_set_already_stops_it_at_once(spin: Callable[[int], int]) -> None:
    source = desist.CancelSource()
    source.cancel()
    assert spin(source.token.flag) == 0


def test_the_flag_is_the_same_for_all_tokens_of_a_source() -> None:
    source = desist.CancelSource()
    first, second = source.token, source.token
    assert first.flag == second.flag
    assert first.flag % 4 == 0


def test_the_flag_is_set_at_its_deadline_in_simulated_time() -> None:
    def body() -> list[int]:
        token = desist.CancelSource(timeout=10).token
        seen = []
        for _ in range(3):
            seen.append(ctypes.c_uint32.from_address(token.flag).value & 1)
            desist.sleep(6)
        return seen

    assert testing.run(body) == [0, 0, 1]
