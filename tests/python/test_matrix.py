"""tools/matrix.py, with a fake `make` in place of the builds and tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "matrix.py"
MAKE = """#!/bin/sh
for argument; do
    case $argument in ARGS=*) report=${argument##*--junitxml=};; esac
done
%s
"""
REPORT = """cat >"$report" <<END
<testsuites><testsuite tests="5" failures="%d" errors="0" skipped="2">
<testcase classname="test_x" name="test_y">%s</testcase></testsuite></testsuites>
END"""
PASSED = MAKE % (REPORT % (0, ""))
FAILED = MAKE % (REPORT % (1, "<failure/>") + "\nexit 1")
CRASHED = MAKE % "exit 2"


def matrix(folder: Path, make: str) -> tuple[int, list[str]]:
    """Run the tool with this interpreter as the only one; return its status and its lines."""
    program = folder / "make"
    program.write_text(make, encoding="utf-8")
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:/usr/bin:/bin",
        "PYENV_ROOT": str(folder),
    }
    run = subprocess.run(
        [
            *(sys.executable, str(TOOL), f"--python={sys.executable}", f"--logs={folder}"),
            *("--", "-k", "a or b"),
        ],
        check=False,
        capture_output=True,
        env=environment,
        text=True,
    )
    assert not run.stderr
    return run.returncode, run.stdout.splitlines()


def row_of(lines: list[str]) -> list[str]:
    """Find the row of this interpreter, without the seconds."""
    version = ".".join(map(str, sys.version_info[:3]))
    [row] = [line.split() for line in lines if line.startswith(version)]
    return row[1:4]


@pytest.mark.skipif(os.name != "posix", reason="the fake make is a shell script")
@pytest.mark.parametrize(
    ("make", "status", "row"),
    [
        (PASSED, 0, ["3", "0", "2"]),
        (FAILED, 1, ["2", "1", "2"]),
        (CRASHED, 1, ["0", "1", "0"]),
    ],
    ids=["passed", "failed", "crashed"],
)
def test_the_table_has_a_row_for_every_version(
    tmp_path: Path, make: str, status: int, row: list[str]
) -> None:
    found, lines = matrix(tmp_path, make)
    assert found == status
    assert row_of(lines) == row
    assert any(line.endswith("not found") for line in lines)
    assert any("FAILED test_x.test_y" in line for line in lines) == (make == FAILED)


def test_an_interpreter_that_does_not_run_is_refused(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(TOOL), f"--python={tmp_path / 'none'}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "does not run" in run.stderr
