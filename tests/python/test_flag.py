"""A loop in C, without the interpreter, that stops when its token is cancelled."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
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
#include <desist.h>

unsigned long long spin(const void *flag)
{
    unsigned long long turns = 0;
    while (!desist_is_cancelled(flag))
        turns++;
    return turns;
}
"""

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], int]:
    folder: Path = tmp_path_factory.mktemp("kernel")
    source, library = folder / "kernel.c", folder / "kernel.so"
    source.write_text(KERNEL)
    warn = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c99"]
    include = ["-I", desist.get_include()]
    assert COMPILER
    command: list[str | Path] = [
        COMPILER,
        "-O2",
        *warn,
        "-shared",
        "-fPIC",
        *include,
        "-o",
        library,
        source,
    ]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(library)).spin  # CDLL lets the interpreter go during the call
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_ulonglong
    return function


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
    # The median: what else the machine does must not decide.
    assert sorted(took)[len(took) // 2] < 1e-3


def test_a_deadline_stops_it_too(spin: Callable[[int], int]) -> None:
    source = desist.CancelSource(timeout=0.01)
    child = desist.CancelSource(source.token, timeout=NEVER)
    assert spin(child.token.flag) > 0
    assert child.token.cancelled


def test_a_flag_that_is_raised_already_stops_it_at_once(spin: Callable[[int], int]) -> None:
    source = desist.CancelSource()
    source.cancel()
    assert spin(source.token.flag) == 0


def test_the_flag_is_the_same_for_all_tokens_of_a_source() -> None:
    source = desist.CancelSource()
    first, second = source.token, source.token
    assert first.flag == second.flag
    assert first.flag % 4 == 0


def test_the_flag_rises_at_its_deadline_in_simulated_time() -> None:
    def body() -> list[int]:
        token = desist.CancelSource(timeout=10).token
        seen = []
        for _ in range(3):
            seen.append(ctypes.c_uint32.from_address(token.flag).value & 1)
            desist.sleep(6)
        return seen

    assert testing.run(body) == [0, 0, 1]
