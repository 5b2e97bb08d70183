"""The workers built with `threading`, `queue` and the usual recipe for a kill.

They are built with care: the lock is taken by `with`, the item of a killed worker is put back,
every `get` has its `task_done`, and a worker that died is replaced. Each step is right by itself; a
kill between two of them cannot be caught by any handler.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from desist._demo.measure import RandomKills, Watchdog
from desist._demo.work import PAUSE, study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from desist._demo.measure import RunStats

REFRESH = 0.05
"""Seconds between two checks of the workers."""


class Killed(BaseException):
    """The exception that kills a worker."""


def raise_in(thread: threading.Thread) -> None:
    """Raise `Killed` in a thread, at its current bytecode: the recipe."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Killed)
    )


class ThreadingWorkers:
    """Daemon threads around a queue; a thread that hangs does not keep the process from exiting."""

    def __init__(self, stats: RunStats) -> None:
        """Prepare to write into the store of `stats`."""
        self.stats = stats
        self.queue: queue.Queue[Path] = queue.Queue()
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.starts: list[Path] = []
        self.escapes: list[str] = []
        self.over = False
        self._starting = threading.Lock()

    def work(self) -> None:
        """Work on items; if a kill ends the work on one, put it back."""
        while not self.over:
            item = self.queue.get()
            try:
                self.starts.append(item)
                time.sleep(PAUSE)
                row = study(item)
                with self.lock:
                    self.stats.store.add(row)
            except Killed:
                self.queue.put(item)
            finally:
                self.queue.task_done()

    def kill(self, index: int) -> str:
        """Kill one worker, unless it is dead and not yet replaced.

        The recipe does not report whether, or when, the exception was raised.
        """
        if not self._starting.acquire(timeout=0.1):  # see `_supervise` for why it may hang
            return "ALREADY_DONE"
        try:
            if not self.threads[index].is_alive():
                return "ALREADY_DONE"
            raise_in(self.threads[index])
            return "ASYNC_EXC"
        finally:
            self._starting.release()

    def run(
        self,
        files: Sequence[Path],
        *,
        every: float,
        seed: int,
        watch: Callable[[RunStats], object],
    ) -> None:
        """Work through the files while random workers are killed.

        Args:
            files: One item each.
            every: Seconds between two kills.
            seed: Decides which workers are killed.
            watch: Called with the stats several times a second.
        """
        stats = self.stats
        kills = RandomKills(self.kill, workers=stats.workers, every=every, seed=seed)
        stats.kills = kills.outcomes
        for file in files:
            self.queue.put(file)
        started = time.monotonic()
        with self._record_escapes():
            self.threads += [self._start_worker() for _ in range(stats.workers)]
            threading.Thread(target=self._supervise, daemon=True).start()
            watchdogs = {
                "no worker executes anything any more": (Watchdog(1.0), self._positions),
                "no item is finished any more": (Watchdog(5.0), lambda: stats.finished),
                "it takes too long": (Watchdog(max(20.0, 0.1 * len(files))), lambda: None),
            }
            with kills:
                # As `queue.join()`, but with a time limit.
                while self.queue.unfinished_tasks and not stats.hung:
                    time.sleep(REFRESH)
                    stats.starts = len(self.starts)
                    stats.seconds = time.monotonic() - started
                    watch(stats)
                    for why, (watchdog, progress) in watchdogs.items():
                        if watchdog.stuck(progress()):
                            stats.hung = why
                            break
            self._count_damage()
        watch(stats)

    def _start_worker(self) -> threading.Thread:
        thread = threading.Thread(target=self.work, name="threading-worker", daemon=True)
        thread.start()
        return thread

    def _supervise(self) -> None:
        """Replace workers that died.

        In a thread of its own, because a kill that is raised inside `threading` itself can make
        every later `Thread.start` hang.
        """
        while not self.over:
            time.sleep(REFRESH)
            for index, thread in enumerate(self.threads):
                if not thread.is_alive():
                    with self._starting:
                        self.threads[index] = self._start_worker()

    def _positions(self) -> list[object]:
        """Return the number of items begun, and the bytecode at which each worker is."""
        frames = sys._current_frames()  # noqa: SLF001 (there is no public way)
        found = (frames.get(thread.ident or 0) for thread in self.threads)
        places = [frame and (frame.f_code, frame.f_lasti) for frame in found]
        return [len(self.starts), *places]

    def _count_damage(self) -> None:
        """Let the workers finish their current items, and count the damage."""
        living = sum(thread.is_alive() for thread in self.threads)
        self.over = True
        calm, limit = Watchdog(patience=0.3), time.monotonic() + 3.0
        while not calm.stuck(self._positions()) and time.monotonic() < limit:
            time.sleep(REFRESH)
        locks = {"the store's": self.lock, "the queue's": self.queue.mutex}
        stats = self.stats
        stats.locks_held = [name for name, lock in locks.items() if lock.locked()]
        stats.starts = len(self.starts)
        stats.alive = 0 if stats.locks_held else living
        left = list(self.queue.queue)
        stats.queued = {str(file) for file in left}
        stats.unacked = max(0, self.queue.unfinished_tasks - len(left))
        stats.acked_twice = sum("task_done" in escape for escape in self.escapes)
        stats.escaped = len(self.escapes)

    @contextmanager
    def _record_escapes(self) -> Iterator[None]:
        """Record the exceptions that leave the workers, in place of printing them."""
        before = threading.excepthook, sys.unraisablehook

        def record_end_of_thread(args: threading.ExceptHookArgs) -> None:
            if args.thread in self.threads:
                self.escapes.append(str(args.exc_value))
            else:
                before[0](args)

        def record_unraisable(args: sys.UnraisableHookArgs) -> None:
            if args.exc_type is Killed:
                self.escapes.append("unraisable")
            else:
                before[1](args)

        threading.excepthook, sys.unraisablehook = record_end_of_thread, record_unraisable
        try:
            yield
        finally:
            threading.excepthook, sys.unraisablehook = before
