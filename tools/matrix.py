"""Run the Python tests on every interpreter that is found: `make matrix`.

    tools/matrix.py [--python FILE ...] [--logs FOLDER] [-- ARGUMENTS OF PYTEST]

For each version there is one interpreter: the first that runs of those named by --python, then
`python3.X` on PATH, then pyenv's. The tests run through `make test-python`, one version after the
other, and their output goes to matrix-VERSION.log in the folder (target/log). The exit status is 0
if at least one interpreter was found and no test failed on any.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

VERSIONS = {
    "3.10": "",
    "3.11": "",
    "3.12": "",
    "3.13": "",
    "3.13t": "evidence only: PyO3 does not support it",
    "3.14": "",
    "3.14t": "",
    "3.15": "",
}
"""Every version with a row in the table, and the remark in that row."""


class Interpreter(NamedTuple):
    """A CPython that was found."""

    version: str
    release: str
    path: str


class Result(NamedTuple):
    """What became of the tests on one interpreter."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    remark: str
    failures: tuple[str, ...] = ()
    """The names of the failed tests."""


def main() -> int:
    """Find the interpreters, run the tests on each, and print the table."""
    parser = argparse.ArgumentParser(description="Run the Python tests on every interpreter found.")
    parser.add_argument("--python", action="append", default=[], help="an interpreter to look at")
    parser.add_argument("--logs", type=Path, default=ROOT / "target" / "log", help="a folder")
    parser.add_argument("arguments", nargs="*", help="passed on to pytest")
    options = parser.parse_args()
    found = find(options.python)
    if not found:
        sys.exit("no CPython 3.10 or newer was found on PATH or in pyenv; name one in PYTHONS")
    results: dict[str, Result] = {}
    for version, interpreter in found.items():
        print(f"== CPython {interpreter.release}: {interpreter.path}", flush=True)
        results[version] = result = run(interpreter, options.arguments, options.logs)
        print(f"   {result.passed} passed, {result.failed} failed", flush=True)
        for name in result.failures:
            print(f"   FAILED {name}", flush=True)
    print()
    print(table(found, results))
    return int(any(result.failed for result in results.values()))


def find(named: list[str]) -> dict[str, Interpreter]:
    """Find one interpreter for each version, in the order of VERSIONS."""
    found: dict[str, Interpreter] = {}
    for path in named:
        interpreter = ask(path)
        if interpreter is None:
            sys.exit(f"{path} does not run, or is not CPython")
        if interpreter.version not in VERSIONS:
            sys.exit(f"{path} is CPython {interpreter.release}: add it to VERSIONS in {__file__}")
        found.setdefault(interpreter.version, interpreter)
    for version in VERSIONS:
        for path in candidates(version):
            interpreter = ask(path)
            if interpreter is not None and interpreter.version == version:
                found.setdefault(version, interpreter)
    return {version: found[version] for version in VERSIONS if version in found}


def candidates(version: str) -> list[str]:
    """List the files that may be an interpreter of this version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    on_path = shutil.which(f"python{version}")
    by_pyenv = pyenv.glob(f"{version.removesuffix('t')}.*/bin/python{version}")
    return [*([on_path] if on_path else []), *sorted(map(str, by_pyenv), reverse=True)]


def ask(path: str) -> Interpreter | None:
    """Run the interpreter to learn its version. A shim of pyenv may exist and not run."""
    code = (
        "import platform, sys; "
        "print('%d.%d' % sys.version_info[:2] + sys.abiflags, platform.python_version(), "
        "platform.python_implementation())"
    )
    try:
        asked = subprocess.run(
            [path, "-ISc", code], check=False, capture_output=True, text=True, timeout=60
        )
    except OSError:
        return None
    words = asked.stdout.split()
    if asked.returncode or words[2:] != ["CPython"]:
        return None
    return Interpreter(words[0], words[1], path)


def run(interpreter: Interpreter, arguments: list[str], logs: Path) -> Result:
    """Build and test with one interpreter. A run that ends without a report has failed."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"matrix-{interpreter.version}.log"
    report = logs / f"matrix-{interpreter.version}.xml"
    report.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        ended = subprocess.run(
            [
                *("make", "test-python", f"PYTHON={interpreter.path}"),
                f"ARGS={shlex.join([*arguments, f'--junitxml={report}'])}",
            ],
            check=False,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in MAKES_OWN},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    seconds = time.monotonic() - began
    remark = VERSIONS[interpreter.version]
    if not report.exists():
        return Result(0, 1, 0, seconds, f"did not get to its end: see {os.path.relpath(log, ROOT)}")
    suite = next(ET.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    if ended.returncode:
        failed = max(failed, 1)
        remark = f"see {os.path.relpath(log, ROOT)}"
    failures = tuple(
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    )
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    return Result(passed, failed, count["skipped"], seconds, remark, failures)


MAKES_OWN = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VIRTUAL_ENV", "PYO3_PYTHON"}
"""Variables that the make around this script sets for its own interpreter."""


def table(found: dict[str, Interpreter], results: dict[str, Result]) -> str:
    """Lay the results out, with a row for every version, also for those that were not found."""
    lines = [f"{'CPython':9} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}"]
    for version in VERSIONS:
        if version not in found:
            lines.append(f"{version:9} not found")
            continue
        passed, failed, skipped, seconds, remark, _ = results[version]
        # The flag of a free-threaded build is not part of its release number.
        release = found[version].release + ("t" if version.endswith("t") else "")
        row = f"{release:9} {passed:6} {failed:6} {skipped:7} {seconds:7.0f}  {remark}"
        lines.append(row.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
