"""What the README and the examples show is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHOWN = re.compile(r"print\(.*\) +# (?P<output>.*)")


def output_of(*arguments: str | Path) -> str:
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_the_readme_prints_what_it_says(block: str) -> None:
    shown = [match["output"] for match in SHOWN.finditer(block)]
    assert output_of("-c", block).splitlines() == shown


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path) -> None:
    assert output_of(example)


def test_there_are_some() -> None:
    assert len(BLOCKS) >= 5
    assert EXAMPLES
