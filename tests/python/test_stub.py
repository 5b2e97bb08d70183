from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDS = bool(importlib.util.find_spec("maturin") and shutil.which("cargo"))


def run(*arguments: str | Path) -> None:
    """Run Python at the root of the project, and check that it succeeds."""
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not BUILDS, reason="the stub is made by maturin and cargo, and one is missing")
@pytest.mark.timeout(600)  # uses the build of `make`, if there is one
def test_the_stub_is_that_of_the_extension(tmp_path: Path) -> None:
    anew = tmp_path / "_core.pyi"
    run("tools/stubs.py", anew)
    committed = ROOT / "python" / "desist" / "_core.pyi"
    advice = "run `make stubs`"
    assert anew.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8"), advice


@pytest.mark.timeout(300)
def test_stubtest_accepts_the_stubs() -> None:
    run("-m", "mypy.stubtest", "desist")


@pytest.mark.timeout(300)
def test_users_get_the_types_they_expect() -> None:
    run("-m", "mypy", "tests/python/typing_usage.py")
