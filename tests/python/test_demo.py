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

from desist._demo.measure import RandomKills, RunStats, Watchdog
from desist._demo.report import cells, damage, summary
from desist._demo.with_desist import DesistWorkers
from desist._demo.with_threading import ThreadingWorkers
from desist._demo.work import Row, standard_library, study

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
def stats(files: list[Path]) -> Iterator[RunStats]:
    stats = RunStats(len(files), workers=3)
    with closing(stats.store):
        yield stats


def ignore(_: RunStats) -> None:
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


def test_the_standard_library_is_sorted_and_without_installed_packages() -> None:
    found = standard_library()
    assert found == sorted(found)
    assert ast.__file__ in map(str, found)
    assert not any("site-packages" in path.parts for path in found)
    assert set(found) <= set(standard_library(tests=True))


def test_a_limit_spreads_over_all_files() -> None:
    few = standard_library(limit=10)
    assert len(set(few)) == 10
    assert few[0] == standard_library()[0]
    assert few[-1] > standard_library()[len(standard_library()) // 2]


# --- measurements ---------------------------------------------------------------------------------


def test_undisturbed_work_passes_the_audit(files: list[Path], stats: RunStats) -> None:
    rows = [study(file) for file in files]
    for row in rows:
        stats.store.add(row)
    stats.alive = stats.workers
    stats.audit(sorted(rows))
    assert stats.intact
    assert not list(damage(stats))


def test_lost_doubled_and_torn_rows_are_noticed(files: list[Path], stats: RunStats) -> None:
    rows = [study(file) for file in files]
    for row in [*rows[2:], rows[2]]:
        stats.store.add(row)
    stats.store.totals.lines += 1
    stats.audit(sorted(rows))
    assert (stats.lost, stats.twice, stats.torn, stats.same) == (2, 1, True, False)
    assert not stats.intact


@pytest.mark.parametrize(
    "wrong",
    [
        {"hung": "why"},
        {"locks_held": ["a lock"]},
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
def test_any_damage_is_a_failure_and_red_in_the_table(
    stats: RunStats, wrong: dict[str, object]
) -> None:
    stats.alive, stats.same = stats.workers, True
    before = stats.intact
    for name, value in wrong.items():
        setattr(stats, name, value)
    assert (before, stats.intact) == (True, False)
    assert sum(cell.good is False for _, cell in cells(stats, ())) == 1
    assert "did NOT hold" in summary(stats, stats, stats)


def test_the_watchdog_reports_a_standstill_longer_than_its_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("desist._demo.measure.time.monotonic", lambda: now)
    watchdog = Watchdog(patience=1.0)
    assert not watchdog.stuck(1)
    now += 1.0
    assert not watchdog.stuck(1)
    now += 0.1
    assert watchdog.stuck(1)
    assert not watchdog.stuck(2)


def test_the_exception_of_a_failed_kill_is_raised() -> None:
    tried = threading.Event()

    def kill(_: int) -> str:
        tried.set()
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        RandomKills(kill, workers=1, every=0.001, seed=0),
    ):
        tried.wait()


# --- the two kinds of workers ---------------------------------------------------------------------


@pytest.mark.parametrize("workers", [DesistWorkers, ThreadingWorkers])
def test_both_kinds_of_workers_do_the_work_without_kills(
    workers: type[DesistWorkers | ThreadingWorkers], files: list[Path], stats: RunStats
) -> None:
    workers(stats).run(files, every=NEVER, seed=0, watch=ignore)
    stats.audit(sorted(study(file) for file in files))
    assert stats.intact
    assert stats.starts == len(files)


def test_desist_is_intact_when_workers_are_killed_without_a_pause(
    files: list[Path], stats: RunStats
) -> None:
    DesistWorkers(stats).run(files, every=0.0001, seed=0, watch=ignore)
    stats.audit(sorted(study(file) for file in files))
    assert stats.intact
    assert stats.kills


def test_a_lock_that_is_never_released_ends_the_threading_run(
    files: list[Path], stats: RunStats
) -> None:
    workers = ThreadingWorkers(stats)
    with workers.lock:  # as if a killed worker had left it so
        workers.run(files, every=NEVER, seed=0, watch=ignore)
        stats.audit(sorted(study(file) for file in files))
    for thread in workers.threads:
        thread.join()
    assert stats.hung == "no worker executes anything any more"
    assert stats.locks_held == ["the store's"]
    assert stats.alive == 0
    assert stats.lost == stats.workers
    assert len(stats.queued) == len(files) - stats.workers


# --- the command line -----------------------------------------------------------------------------


def test_the_demo_ends_with_a_table_and_a_summary() -> None:
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


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
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
