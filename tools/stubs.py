"""Write the stub of the extension: `python tools/stubs.py python/desist/_core.pyi`.

PyO3 stores the types of its Rust source in the extension, and maturin writes a stub from them. This
script adds what PyO3 cannot express. Then ruff takes the quotes off annotations, sorts the imports,
checks that every name is defined, and formats.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MISSING = {
    # Imports for annotations that PyO3 takes for builtins, or as text.
    "\n__all__ = [": (
        "\nimport os"
        "\nfrom concurrent.futures import Future"
        "\nfrom email.message import Message"
        "\nfrom collections.abc import Callable, Iterable, Mapping"
        "\nfrom types import GenericAlias"
        "\nfrom typing import Any, Generic, Literal, Self, TypeAlias, TypeVar, overload"
        "\nfrom desist._group import Task as _GroupTask"
        "\nfrom desist._items import ItemInfo"
        "\nfrom desist._ports import PoolObserver"
        "\nfrom desist._thread import StoppableThread"
        "\n"
        '\n_T = TypeVar("_T")'
        '\n_T_co = TypeVar("_T_co", covariant=True)'
        '\n_Ending = TypeVar("_Ending", bound=StoppableThread | _GroupTask[Any] | Future[Any])'
        "\n_Awaited: TypeAlias = ("
        "Op[Any] | Event | CancelToken | StoppableThread | _GroupTask[Any] | Future[Any])"
        "\n"
        "\n__all__ = ["
    ),
    # The base that makes a class generic.
    "\nclass FileQueue:\n": "\nclass FileQueue(Generic[_T]):\n",
    "\nclass Guarded:\n": "\nclass Guarded(Generic[_T]):\n",
    "\nclass GuardedValue:\n": "\nclass GuardedValue(Generic[_T]):\n",
    "\nclass Lease:\n": "\nclass Lease(Generic[_T]):\n",
    "\nclass LeaseQueue:\n": "\nclass LeaseQueue(Generic[_T]):\n",
    "\nclass Op:\n": "\nclass Op(Generic[_T_co]):\n",
    "\nclass Queue:\n": "\nclass Queue(Generic[_T]):\n",
    "\nclass SimpleQueue:\n": "\nclass SimpleQueue(Generic[_T]):\n",
    # The type arguments of a tuple.
    "def discard_for(self, /) -> tuple | None:": (
        "def discard_for(self, /) -> tuple[type[BaseException], ...] | None:"
    ),
    "def retry_for(self, /) -> tuple | None:": (
        "def retry_for(self, /) -> tuple[type[BaseException], ...] | None:"
    ),
    # A return type that is the class of the object.
    "def __enter__(self, /) -> OwnerBlock:": "def __enter__(self, /) -> Self:",
    # A return type that depends on the argument.
    """
def wait_any(*what: "Op[_T]", timeout: float | None = None) -> "tuple[int, _T] | None":
""": """
@overload
def wait_any(
    first: Op[_T], /, *more: Op[_T], timeout: float | None = None
) -> tuple[int, _T] | None: ...
@overload
def wait_any(
    first: _Ending, /, *more: _Ending, timeout: float | None = None
) -> tuple[int, _Ending] | None: ...
@overload
def wait_any(
    first: CancelToken, /, *more: CancelToken, timeout: float | None = None
) -> tuple[int, CancelCause] | None: ...
@overload
def wait_any(
    first: Event, /, *more: Event, timeout: float | None = None
) -> tuple[int, bool] | None: ...
@overload
def wait_any(
    first: _Awaited, /, *more: _Awaited, timeout: float | None = None
) -> tuple[int, Any] | None:
""",
    """
    def repair(self, fn: "Callable[[], object] | None" = None, /) -> "LockGuard | None":
""": """
    @overload
    def repair(self, fn: None = None, /) -> LockGuard: ...
    @overload
    def repair(self, fn: Callable[[], object], /) -> None:
""",
}
"""Pieces that the generated stub must have exactly once, and their replacements."""


def generate() -> str:
    """Have maturin write the stub, from the build that `make` uses."""
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
"""A constructor that accepts any arguments, because `__init__` declares and checks them."""


def complete(stub: str) -> str:
    """Replace the pieces of MISSING, and drop the lenient constructors."""
    for before, after in MISSING.items():
        if stub.count(before) != 1:
            sys.exit(f"the generated stub has {before!r} {stub.count(before)} times, not once")
        stub = stub.replace(before, after)
    return LENIENT.sub("", stub)


NEW_IN_TYPING = {"Self", "disjoint_base"}
"""Names that the `typing` of a newer Python has, and that of the oldest supported one has not."""


def portable(stub: str) -> str:
    """Import those from typing_extensions, so that every version of Python writes the same stub."""

    def split(line: re.Match[str]) -> str:
        names = set(line[1].split(", "))
        imports = (
            ("typing", names - NEW_IN_TYPING),
            ("typing_extensions", names & NEW_IN_TYPING),
        )
        return "\n".join(
            f"from {module} import {', '.join(sorted(part))}" for module, part in imports if part
        )

    return re.sub(r"^from typing import (.+)$", split, stub, flags=re.MULTILINE)


def tidy(stub: str) -> str:
    """Have ruff check and format it, as the project formats."""
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", "python/desist/_core.pyi", "-"]
    stub = run(*ruff, "check", "--fix", "--select", "F,I,UP037", *name, stdin=stub)
    return run(*ruff, "format", "--quiet", *name, stdin=stub)


def run(*command: str, stdin: str = "") -> str:
    """Run a command at the root of the project and return its output; exit if it fails."""
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
    Path(sys.argv[1]).write_text(tidy(portable(complete(generate()))), encoding="utf-8")
