"""The edits of `make seeded-bugs` still match the source."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "seeded_bugs.py"
spec = importlib.util.spec_from_file_location("seeded_bugs", SCRIPT)
assert spec is not None
assert spec.loader is not None
seeded_bugs = importlib.util.module_from_spec(spec)
sys.modules["seeded_bugs"] = seeded_bugs
spec.loader.exec_module(seeded_bugs)


@pytest.mark.parametrize("bug", seeded_bugs.BUGS, ids=lambda bug: bug.name)
def test_the_text_of_each_edit_is_in_the_source_once(bug: Any) -> None:
    source = (seeded_bugs.ROOT / bug.file).read_text()
    for text, _ in bug.edits:
        assert len(seeded_bugs.anywhere(text).findall(source)) == 1, text
