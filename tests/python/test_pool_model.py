"""I28, I30, I31, I35: random programs on a pool, compared with a model."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from desist import FileQueue, LeaseQueue
from pool_model import RETRY, run_programs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FEW_OR_MANY = pytest.mark.parametrize(
    "programs", [30, pytest.param(3000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)


@pytest.mark.parametrize("kind", ["memory", "file"])
@FEW_OR_MANY
def test_i28_a_pool_does_what_the_model_says(kind: str, programs: int, tmp_path: Path) -> None:
    numbers = itertools.count()
    queues: dict[str, Callable[[], Any]] = {
        "memory": lambda: LeaseQueue[int](retry=RETRY),
        "file": lambda: FileQueue[int](tmp_path / f"{next(numbers)}", retry=RETRY),
    }
    run_programs(queues[kind], programs)
