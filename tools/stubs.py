"""Write the stub of the extension: `python tools/stubs.py python/desist/_core.pyi`.

PyO3 leaves in the extension what its Rust source says of types, and maturin makes a stub of it.
What PyO3 has no words for is put in here. Then ruff takes the quotes off annotations, sorts the
imports, sees to it that every name is defined, and formats.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MISSING = {
    # Names of annotations that PyO3 takes for builtins, or as text.
    "\n__all__ = [": (
        "\nimport os"
        "\nfrom collections.abc import Callable, Iterable"
        "\nfrom types import GenericAlias"
        "\nfrom typing import Generic, Literal, TypeVar, overload"
        "\n"
        '\n_T = TypeVar("_T")'
        '\n_T_co = TypeVar("_T_co", covariant=True)'
        "\n"
        "\n__all__ = ["
    ),
    # That a class is generic.
    "\nclass FileQueue:\n": "\nclass FileQueue(Generic[_T]):\n",
    "\nclass Guarded:\n": "\nclass Guarded(Generic[_T]):\n",
    "\nclass GuardedValue:\n": "\nclass GuardedValue(Generic[_T]):\n",
    "\nclass Lease:\n": "\nclass Lease(Generic[_T]):\n",
    "\nclass LeaseQueue:\n": "\nclass LeaseQueue(Generic[_T]):\n",
    "\nclass Op:\n": "\nclass Op(Generic[_T_co]):\n",
    "\nclass Queue:\n": "\nclass Queue(Generic[_T]):\n",
    "\nclass SimpleQueue:\n": "\nclass SimpleQueue(Generic[_T]):\n",
    # What is returned depends on what is given.
    """
    def repair(self, fn: "Callable[[], object] | None" = None, /) -> "LockGuard | None":
""": """
    @overload
    def repair(self, fn: None = None, /) -> LockGuard: ...
    @overload
    def repair(self, fn: Callable[[], object], /) -> None:
""",
}
"""What the generated stub must have exactly once, and what takes its place."""


def generate() -> str:
    """Have maturin make the stub, out of the build that `make` uses."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}"
    with tempfile.TemporaryDirectory() as folder:
        run(
            *(sys.executable, "-m", "maturin", "generate-stubs"),
            *("--profile", "release", "--locked"),
            *("--target-dir", f"target/py{version}"),
            *("--interpreter", sys.executable),
            *("--out", folder),
        )
        return Path(folder, "desist", "_core.pyi").read_text(encoding="utf-8")


LENIENT = re.compile(
    r"    def __new__\(cls, /, \*_args: .?object.?, \*\*_kwargs: .?object.?\) -> .*\n"
)
"""A constructor that leaves arguments to `__init__`, which says what they are."""


def complete(stub: str) -> str:
    """Put in what is missing."""
    for before, after in MISSING.items():
        if stub.count(before) != 1:
            sys.exit(f"the generated stub has {before!r} {stub.count(before)} times, not once")
        stub = stub.replace(before, after)
    return LENIENT.sub("", stub)


def tidy(stub: str) -> str:
    """Have ruff check and format it, as the project formats."""
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", "python/desist/_core.pyi", "-"]
    stub = run(*ruff, "check", "--fix", "--select", "F,I,UP037", *name, stdin=stub)
    return run(*ruff, "format", "--quiet", *name, stdin=stub)


def run(*command: str, stdin: str = "") -> str:
    """Run a command at the root of the project; what it prints. If it fails, that is the end."""
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        input=stdin,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return done.stdout


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(tidy(complete(generate())), encoding="utf-8")
