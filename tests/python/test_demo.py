from __future__ import annotations

import ast
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from desist.__main__ import main

pytest.importorskip("rich")

from desist._demo.job import Row, standard_library, study
from desist._demo.naive import NaiveWorkers
from desist._demo.report import cells, damage, sentence
from desist._demo.saboteur import Saboteur
from desist._demo.safe import SafeWorkers
from desist._demo.tally import Tally
from desist._demo.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEVER = 3600.0


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.py" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_text("def f(): pass\n" * number)
    return paths


@pytest.fixture
def tally(files: list[Path]) -> Iterator[Tally]:
    tally = Tally(len(files), workers=3)
    with closing(tally.store):
        yield tally


def ignore(_: Tally) -> None:
    pass


# --- the work -------------------------------------------------------------------------------------


def test_lines_and_functions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("class A:\n  def f(self): lambda: 0\n  async def g(self):\n    def h(): pass\n")
    assert study(path) == Row(str(path), lines=4, functions=3, error="")


def test_a_file_that_does_not_parse_has_a_row_too(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("def f(:\n")
    assert study(path).error == "SyntaxError"
    assert study(tmp_path / "none.py").error == "FileNotFoundError"


def test_the_standard_library_comes_in_order_and_without_what_others_installed() -> None:
    found = standard_library()
    assert found == sorted(found)
    assert ast.__file__ in map(str, found)
    assert not any("site-packages" in path.parts for path in found)
    assert set(found) <= set(standard_library(tests=True))


def test_a_limit_takes_files_from_everywhere() -> None:
    few = standard_library(limit=10)
    assert len(set(few)) == 10
    assert few[0] == standard_library()[0]
    assert few[-1] > standard_library()[len(standard_library()) // 2]


# --- what is measured -----------------------------------------------------------------------------


def test_work_that_nobody_disturbs_passes_the_audit(files: list[Path], tally: Tally) -> None:
    rows = [study(file) for file in files]
    for row in rows:
        tally.store.add(row)
    tally.alive = tally.workers
    tally.audit(sorted(rows))
    assert tally.held_up
    assert not list(damage(tally))


def test_lost_doubled_and_torn_rows_are_noticed(files: list[Path], tally: Tally) -> None:
    rows = [study(file) for file in files]
    for row in [*rows[2:], rows[2]]:
        tally.store.add(row)
    tally.store.totals.lines += 1
    tally.audit(sorted(rows))
    assert (tally.lost, tally.twice, tally.torn, tally.same) == (2, 1, True, False)
    assert not tally.held_up


@pytest.mark.parametrize(
    "wrong",
    [
        {"hung": "why"},
        {"held": ["a lock"]},
        {"queued": {"an item"}},
        {"unacked": 1},
        {"acked_twice": 1},
        {"escaped": 1},
        {"alive": 2},
        {"lost": 1},
        {"twice": 1},
        {"torn": True},
        {"same": False},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_anything_wrong_is_no_success_and_stands_red_in_the_table(
    tally: Tally, wrong: dict[str, object]
) -> None:
    tally.alive, tally.same = tally.workers, True
    before = tally.held_up
    for name, value in wrong.items():
        setattr(tally, name, value)
    assert (before, tally.held_up) == (True, False)
    assert sum(cell.good is False for _, cell in cells(tally, ())) == 1
    assert "did NOT hold" in sentence(tally, tally, tally)


def test_the_watchdog_bears_with_a_standstill_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("desist._demo.watchdog.time.monotonic", lambda: now)
    watchdog = Watchdog(patience=1.0)
    assert not watchdog.stuck(1)
    now += 1.0
    assert not watchdog.stuck(1)
    now += 0.1
    assert watchdog.stuck(1)
    assert not watchdog.stuck(2)


def test_a_kill_that_fails_is_not_kept_secret() -> None:
    tried = threading.Event()

    def kill(_: int) -> str:
        tried.set()
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        Saboteur(kill, workers=1, every=0.001, seed=0),
    ):
        tried.wait()


# --- the two kinds of workers ---------------------------------------------------------------------


@pytest.mark.parametrize("workers", [SafeWorkers, NaiveWorkers])
def test_both_kinds_do_the_work_if_nobody_is_killed(
    workers: type[SafeWorkers | NaiveWorkers], files: list[Path], tally: Tally
) -> None:
    workers(tally).run(files, every=NEVER, seed=0, watch=ignore)
    tally.audit(sorted(study(file) for file in files))
    assert tally.held_up
    assert tally.starts == len(files)


def test_desist_holds_when_workers_are_killed_as_quickly_as_can_be(
    files: list[Path], tally: Tally
) -> None:
    SafeWorkers(tally).run(files, every=0.0001, seed=0, watch=ignore)
    tally.audit(sorted(study(file) for file in files))
    assert tally.held_up
    assert tally.kills


def test_a_lock_that_nobody_gives_back_ends_the_naive_run(files: list[Path], tally: Tally) -> None:
    naive = NaiveWorkers(tally)
    with naive.lock:  # as if a killed worker had left it so
        naive.run(files, every=NEVER, seed=0, watch=ignore)
        tally.audit(sorted(study(file) for file in files))
    for thread in naive.threads:
        thread.join()
    assert tally.hung == "no worker moves any more"
    assert tally.held == ["the store's"]
    assert tally.alive == 0
    assert tally.lost == tally.workers
    assert len(tally.queued) == len(files) - tally.workers


# --- the command line -----------------------------------------------------------------------------


def test_the_demo_ends_with_a_table_and_says_whether_desist_held() -> None:
    command = [sys.executable, "-m", "desist", "demo", "--limit", "40", "--kill-every", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert "locks still held" in done.stdout
    assert "and the result is that of a run" in done.stdout


def test_without_rich_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["demo"]) == 2
    assert "pip install 'desist[demo]'" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("desist 0.")


def test_without_a_command_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--workers", "0"], ["--kill-every", "nan"], ["--kill-every", "-1"], ["--limit", "some"]],
    ids=" ".join,
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *arguments])
    assert arguments[0] in capsys.readouterr().err
