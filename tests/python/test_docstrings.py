"""Docstrings say of each public call that may block: for how long, and how a cancel ends it.

Which calls may block is read from the sources. A native call does if it comes to one of the
functions in which all native waits end (`PRIMITIVES`); a Python one does if it calls one of these,
by way of any function of the package. A call with a `timeout` or a `deadline` has to say so in any
case, if only that it never blocks.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import desist

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(desist.__file__).parent
SOURCES = PACKAGE.parents[1] / "src" / "python"
MODULES = (
    "",
    ".aio",
    ".asgi",
    ".compat",
    ".engines",
    ".socket",
    ".ssl",
    ".subprocess",
    ".testing",
    ".wsgi",
)

PRIMITIVES = {"perform", "perform_any", "blocking", "wait_ready", "wait_until", "arrive"}
"""The functions of the core, and of src/python, by which a native call waits."""


def public_callables() -> Iterator[tuple[str, object, type | None]]:
    """Name, function, and class: of all functions and methods that users call."""
    for suffix in MODULES:
        module = importlib.import_module(f"desist{suffix}")
        names = getattr(module, "__all__", None) or [
            name for name in vars(module) if not name.startswith("_")
        ]
        for name in names:
            thing = getattr(module, name)
            if not getattr(thing, "__module__", "").startswith("desist"):
                continue
            if not inspect.isclass(thing):
                yield f"{module.__name__}.{name}", thing, None
                continue
            yield f"{module.__name__}.{name}", thing, thing
            for member in dir(thing):
                value = inspect.getattr_static(thing, member)
                value = getattr(value, "__func__", value)
                ours = any(
                    member in vars(base) and base.__module__.startswith("desist")
                    for base in thing.__mro__
                )
                if ours and not member.startswith("_") and inspect.isroutine(value):
                    yield f"{module.__name__}.{name}.{member}", value, thing


CALLABLES = {name: (value, owner) for name, value, owner in public_callables()}


def documentation(name: str) -> str:
    """The docstring; for a method without the paragraphs also that of its class."""
    value, owner = CALLABLES[name]
    if value is owner:
        return inspect.getdoc(owner) or ""
    if owner is None:
        return inspect.getdoc(value) or ""
    text = inspect.getdoc(getattr(owner, name.rpartition(".")[2])) or ""
    of_class = inspect.getdoc(owner) or ""
    return text if "Blocks:" in text or PER_CALL not in of_class else of_class


PER_CALL = "Blocks: each call"
"""With this, the paragraphs of a class's docstring are those of its methods."""


def parameters(value: object) -> set[str]:
    try:
        return {*inspect.signature(value).parameters}  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return set()


# --- which calls may block ------------------------------------------------------------------------


def closure(calls: dict[str, set[str]], blocking: set[str]) -> set[str]:
    """All keys that come to a function of `blocking`, by way of any others."""
    while True:
        more = {name for name, called in calls.items() if called & blocking} - blocking
        if not more:
            return blocking
        blocking = blocking | more


RUST_FN = re.compile(r"^( *)(?:pub(?:\([^)]*\))? )?fn (\w+)", re.MULTILINE)
RUST_IMPL = re.compile(r"^impl(?:<[^>]*>)? (?:\w+(?:<.*>)? for )?(\w+)", re.MULTILINE)
RUST_CALL = re.compile(r"\b(\w+)(?:::<[^>]*>)?\(")
RUST_OWN_CALL = re.compile(r"[sS]elf(?:::|\.)(\w+)")


def native_waits() -> set[str]:
    """The functions, and methods with their classes, of src/python that may wait.

    Functions are called by their names in one file, methods by those of their class.
    """
    calls: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES.rglob("*.rs"):
        text = path.read_text()
        owners = [(found.start(), found[1]) for found in RUST_IMPL.finditer(text)]
        for found in RUST_FN.finditer(text):
            indent, name = found.groups()
            body = text[found.start() : text.find(f"\n{indent}}}\n", found.start())]
            called = {*RUST_CALL.findall(body)} - {name}
            names = called & PRIMITIVES | {f"{path}:{other}" for other in called}
            inside = [owner for at, owner in owners if indent and at < found.start()]
            if inside:
                calls[f"{inside[-1]}.{name}"] |= names
                calls[f"{inside[-1]}.{name}"] |= {
                    f"{inside[-1]}.{other}" for other in RUST_OWN_CALL.findall(body)
                }
            else:
                calls[name] |= names
                calls[f"{path}:{name}"] |= names
    return closure(calls, PRIMITIVES)


FunctionDef = ast.FunctionDef | ast.AsyncFunctionDef

EVERYDAY = {*dir(dict), *dir(list), *dir(str), *dir(set), "put", "run"}
"""Names of methods that say nothing about the object."""


def called_names(function: FunctionDef, path: Path, owner: str, local: set[str]) -> set[str]:
    """What a Python function calls, as keys of the calls in `python_waits`."""
    called = set()
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                called.add(f"{path}:{name}" if name in local else f"any {name}")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                called |= {f"{owner}.{name}", f"any {name}"}
            case ast.Call(func=ast.Attribute(attr=name)):
                called.add(f"any {name}")
    return called


def python_waits(native: set[str]) -> set[str]:
    """The functions, and methods with their classes, of the package that may wait.

    A native method counts by its name, whatever object it is called of, unless collections have a
    method of this name, too.
    """
    calls: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        functions = [node for node in tree.body if isinstance(node, FunctionDef)]
        local = {function.name for function in functions}
        for function in functions:
            called = called_names(function, path, "", local)
            calls[function.name] = calls[f"{path}:{function.name}"] = called
        for owner in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
            for method in owner.body:
                if isinstance(method, FunctionDef):
                    called = called_names(method, path, owner.name, local)
                    calls[f"{owner.name}.{method.name}"] = called
    direct = {f"any {name.rpartition('.')[2]}" for name in native if ":" not in name}
    return closure(calls, direct - {f"any {name}" for name in EVERYDAY})


NATIVE = native_waits()
WAITS = NATIVE | python_waits(NATIVE)


def may_block(name: str) -> bool:
    value, owner = CALLABLES[name]
    if {"timeout", "deadline"} & parameters(value):
        return True
    member = name.rpartition(".")[2]
    if owner is None:
        return member in WAITS
    return value is not owner and any(
        f"{base.__name__}.{member}" in WAITS for base in owner.__mro__
    )


# --- the tests ------------------------------------------------------------------------------------


def test_the_sources_show_which_calls_may_block() -> None:
    found = {name.removeprefix("desist.") for name in CALLABLES if may_block(name)}
    assert found >= {"sleep_forever", "Lock.acquire", "Queue.join", "TaskGroup.as_completed"}
    assert found >= {"ThreadPoolExecutor.shutdown", "socket.SocketType.recv", "subprocess.call"}
    assert not found & {"current_time", "Lock.release", "Event.set", "CancelScope.cancel"}


@pytest.mark.parametrize("name", [name for name in CALLABLES if may_block(name)])
def test_a_call_that_may_block_says_when_and_how_a_cancel_ends_it(name: str) -> None:
    text = documentation(name)
    if re.search(r"\bnever blocks|blocks: never", text, re.IGNORECASE):
        return
    for heading in ("Blocks:", "On cancel:"):
        assert heading in text, f"{name} has no paragraph {heading!r}:\n{text}"
