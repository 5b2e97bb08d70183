"""desist.compat as a whole."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from desist import compat

PAGE = (Path(__file__).parents[2] / "docs" / "six-ways.md").read_text(encoding="utf-8")


def test_all_lists_every_public_name() -> None:
    public = {name for name in vars(compat) if not name.startswith("_")}
    assert set(compat.__all__) == public
    classes = [name for name in compat.__all__ if name[0].isupper()]
    assert compat.__all__ == sorted(classes) + sorted(set(compat.__all__) - set(classes))


@pytest.mark.parametrize("name", compat.__all__)
def test_every_name_has_a_docstring_and_a_place_on_the_page(name: str) -> None:
    thing = getattr(compat, name)
    assert inspect.getdoc(thing)
    assert re.search(rf"`(compat\.)?{name}\b", PAGE)
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if callable(value) and (member == "__init__" or not member.startswith("_")):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_it_is_imported_on_first_use() -> None:
    code = (
        "import sys, desist; print('desist.compat' in sys.modules, desist.compat.timeout.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False timeout\n"
