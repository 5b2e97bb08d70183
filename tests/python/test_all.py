from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import desist

PACKAGE = Path(desist.__file__).parent


def test_all_is_sorted_and_lists_every_public_name() -> None:
    public = {name for name in dir(desist) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(desist, name))}
    assert set(desist.__all__) == public - modules
    assert len(desist.__all__) == len(set(desist.__all__))
    classes = [name for name in desist.__all__ if name[0].isupper()]
    assert desist.__all__ == sorted(classes) + sorted(set(desist.__all__) - set(classes))


def test_the_top_level_is_small() -> None:
    assert len(desist.__all__) <= 85


def test_type_checkers_see_exactly_the_lazy_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        name.asname or name.name: f"{found.module}".removeprefix("desist").removeprefix(".")
        for block in tree.body
        if isinstance(block, ast.If)
        for found in block.body
        if isinstance(found, ast.ImportFrom)
        for name in found.names
    }
    modules = {name for name, module in typed.items() if not module}
    assert {name: typed[name] or name for name in typed} == desist._LAZY
    assert modules <= set(dir(desist)) - set(desist.__all__)
    assert desist._LAZY.keys() - modules <= set(desist.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'desist' has no attribute 'nothing'"):
        _ = desist.nothing


@pytest.mark.parametrize("name", desist.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    thing = getattr(desist, name)
    assert inspect.getdoc(thing)
    if not inspect.isclass(thing) or issubclass(thing, BaseException):
        return
    for member, value in vars(thing).items():
        if member.startswith("_") or not (callable(value) or inspect.isdatadescriptor(value)):
            continue
        assert inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize("name", desist.__all__)
def test_the_module_of_every_public_name_is_desist(name: str) -> None:
    module = getattr(getattr(desist, name), "__module__", None)
    assert module is not None
    # These are the standard library's own classes, so that existing handlers catch them.
    own = {"ShutDown": "queue"} if sys.version_info >= (3, 13) else {}
    assert module.partition(".")[0] == own.get(name, "desist")


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    described = {
        node.name for node in stub.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    native = {name for name in desist.__all__ if hasattr(desist._core, name)}
    assert native <= described | {
        target.id
        for node in stub.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def test_an_import_does_not_import_heavy_modules() -> None:
    heavy = {"rich", "multiprocessing", "typing_extensions", "sqlite3"}
    if sys.version_info >= (3, 11):  # before 3.11 concurrent.futures has a TimeoutError of its own
        heavy |= {"asyncio", "ssl", "socket", "selectors", "subprocess", "typing"}
    code = "import sys; before = {*sys.modules}; import desist; print(*({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_a_deadline_is_a_timeout_by_all_its_names() -> None:
    import asyncio
    import concurrent.futures
    import socket

    error = desist.DeadlineExceeded
    assert issubclass(error, TimeoutError)
    assert issubclass(error, concurrent.futures.TimeoutError)
    assert issubclass(error, socket.timeout)
    assert issubclass(error, asyncio.TimeoutError)


def test_errors_derive_from_the_classes_that_code_catches() -> None:
    import concurrent.futures

    for error in (desist.LockPoisoned, desist.Fenced, desist.ScopeMisuse, desist.PoolExhausted):
        assert issubclass(error, RuntimeError)
    assert issubclass(desist.LockUnavailable, RuntimeError)
    assert desist.LockPoisoned.__base__ is desist.OwnerLost.__base__ is desist.LockUnavailable
    assert issubclass(desist.TaskCancelled, concurrent.futures.CancelledError)
    assert not issubclass(desist.Killed, Exception)
    assert not issubclass(desist.Cancelled, Exception)
