"""The layers of python/desist: a module imports only modules of the layers below its own.

Read from the sources, so that imports inside functions and under TYPE_CHECKING count as well, and
so do module names in strings, for `import_module`. Modules that the extension imports by name at
run time (`_exceptions`, `_enums`, ...) do not count.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

import desist

# The only list of these layers, from the bottom to the top. Modules of one layer do not import each
# other. A dot leads to a module of a folder; the folder's own name is its __init__.py.
LAYERS = (
    "_core _surroundings",
    "_enums _pickling",
    "_exceptions _codec _items _offload _channel _exit_watch",
    "_bind _events _exit _foreign _future _interruptible _pipes _queue _signals _sweep",
    "_killing",
    "_executor _group _handle _item_future _child_loop _thread",
    "_child _ops _ports _supervisor",
    "_worker",
    "engines._calls engines._port engines._redis_scripts engines._url",
    "engines._held engines.postgres engines.redis",
    "engines._heartbeat",
    "engines._queue",
    "engines._open",
    "engines",
    "_pool aio asgi socket subprocess testing wsgi",
    "_call gunicorn ssl",
    "_deadline",
    "compat._at_exit compat._timeouts compat._with",
    "compat._kthread compat._parent compat._stoppable",
    "compat",
    "desist",
    "_demo.work",
    "_demo.measure",
    "_demo.report _demo.with_desist _demo.with_threading",
    "_demo.compare",
    "_demo",
    "__main__",
)
RANKS = {module: rank for rank, layer in enumerate(LAYERS) for module in layer.split()}


class Import(NamedTuple):
    """One import of a module of the package."""

    source: str
    line: int
    target: str


def layered_name(module: str) -> str:
    """Give the name that LAYERS has for `desist.x.y`."""
    return module.removeprefix("desist.")


def modules_of(folder: Path) -> dict[str, Path]:
    """Find the modules of a package by their dotted names; the extension is `_core.pyi`."""
    found = {}
    for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")]):
        parts = ["desist", *file.relative_to(folder).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(module: str, file: Path, modules: dict[str, Path]) -> Iterator[Import]:
    """Find the imports of the package's modules anywhere in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            # `from desist import socket` names a module, `from desist import Lock` does not.
            members = [f"{base}.{alias.name}" for alias in node.names]
            targets = [member if member in modules else base for member in members]
        elif isinstance(node, ast.Constant) and node.value in modules and "." in node.value:
            targets = [node.value]
        for target in targets:
            if target in modules and target != module:
                yield Import(module, getattr(node, "lineno", 0), target)


def upward_imports(folder: Path) -> list[str]:
    """Describe every import of a module that is not in a layer below the importing one's."""
    modules = modules_of(folder)
    return [
        f"{file.relative_to(folder.parent)}:{line}: "
        f"{layered_name(module)} (layer {rank_of(module)}) imports "
        f"{layered_name(target)} (layer {rank_of(target)})"
        for module, file in modules.items()
        if file.suffix == ".py"
        for _, line, target in imports_of(module, file, modules)
        if rank_of(module) <= rank_of(target)
    ]


def rank_of(module: str) -> int:
    return RANKS[layered_name(module)]


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    folder = Path(desist.__path__[0])
    assert sorted(map(layered_name, modules_of(folder))) == sorted(RANKS)


def test_no_module_imports_one_of_its_own_layer_or_of_a_layer_above() -> None:
    found = upward_imports(Path(desist.__path__[0]))
    assert not found, "\n".join(found)


def test_an_upward_import_is_found_wherever_it_stands(tmp_path: Path) -> None:
    package = tmp_path / "desist"
    package.mkdir()
    for name in ("__init__", "_core", "_pool", "_enums"):
        (package / f"{name}.py").touch()
    (package / "_future.py").write_text(
        "from desist._enums import KillOutcome\n"
        "if TYPE_CHECKING:\n"
        "    from desist._pool import WorkerPool\n"
        "def lazily() -> None:\n"
        "    from desist import _pool\n"
        "    import desist\n"
        "    import_module('desist._pool')\n"
    )
    future, pool, top = (RANKS[module] for module in ("_future", "_pool", "desist"))
    assert upward_imports(package) == [
        f"desist/_future.py:{line}: _future (layer {future}) imports {target} (layer {rank})"
        for line, target, rank in (
            (3, "_pool", pool),
            (5, "_pool", pool),
            (6, "desist", top),
            (7, "_pool", pool),
        )
    ]
