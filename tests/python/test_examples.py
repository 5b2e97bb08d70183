"""The code blocks of the README and of the pages in docs, and the examples, run as shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    )
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHOWN = re.compile(r"print\(.*\) +# (?P<output>.*)")


def output_of(*arguments: str | Path) -> str:
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_a_page_prints_the_output_in_its_comments(block: str, tmp_path: Path) -> None:
    shown = [match["output"] for match in SHOWN.finditer(block)]
    script = tmp_path / "block.py"  # a file, because worker processes import it again
    script.write_text(block, encoding="utf-8")
    assert output_of(script).splitlines() == shown


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path) -> None:
    assert output_of(example)


def test_blocks_and_examples_are_found() -> None:
    assert len(BLOCKS) >= 5
    assert EXAMPLES
