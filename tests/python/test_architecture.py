"""The page for contributors names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:src|python|tests|docs)/[\w./*-]+)`", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_the_architecture_page_exists(path: str) -> None:
    assert list(ROOT.glob(path)), "docs/architecture.md names a file that is gone"


def test_the_page_names_the_core_the_binding_and_the_package() -> None:
    assert {"src/lib.rs", "src/python/", "python/desist/"} <= set(PATHS)
