from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import conftest

if TYPE_CHECKING:
    from pathlib import Path


def test_a_binary_that_is_older_than_its_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "new.rs").touch()
    (tmp_path / "Cargo.toml").touch()
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    with pytest.raises(pytest.exit.Exception, match="make test"):
        conftest.pytest_configure()
