"""The workers as they are often built: threading, queue, and a borrowed recipe.

It is an honest effort. The lock is taken by `with`, a killed item is put back, every
`get` has its `task_done`, a worker that died is replaced. Each step is right by
itself; what no handler can catch is a kill between two of them.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from desist._demo.job import PAUSE, study
from desist._demo.saboteur import Saboteur
from desist._demo.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from desist._demo.tally import Tally

GLANCE = 0.05
"""Seconds between two looks at the workers."""


class Killed(BaseException):
    """What is thrown into a worker."""


def strike(thread: threading.Thread) -> None:
    """Throw `Killed` into a thread, wherever it is: the recipe that people copy."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Killed)
    )


class NaiveWorkers:
    """Daemon threads around a queue: one that hangs does not block the exit."""

    def __init__(self, tally: Tally) -> None:
        """Prepare to work into that tally's store."""
        self.tally = tally
        self.queue: queue.Queue[Path] = queue.Queue()
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.starts: list[Path] = []
        self.escapes: list[str] = []
        self.over = False
        self._hiring = threading.Lock()

    def work(self) -> None:
        """Take items and do them; if a kill ends one, put it back."""
        while not self.over:
            item = self.queue.get()
            try:
                self.starts.append(item)
                time.sleep(PAUSE)
                row = study(item)
                with self.lock:
                    self.tally.store.add(row)
            except Killed:
                self.queue.put(item)
            finally:
                self.queue.task_done()

    def kill(self, index: int) -> str:
        """Kill one worker, unless it is dead and not yet replaced.

        When the kill lands, if it ever does, the recipe does not tell.
        """
        if not self._hiring.acquire(timeout=0.1):  # `_supervise` tells why it may hang
            return "ALREADY_DONE"
        try:
            if not self.threads[index].is_alive():
                return "ALREADY_DONE"
            strike(self.threads[index])
            return "ASYNC_EXC"
        finally:
            self._hiring.release()

    def run(
        self,
        files: Sequence[Path],
        *,
        every: float,
        seed: int,
        watch: Callable[[Tally], object],
    ) -> None:
        """Work through the files while the saboteur kills.

        Args:
            files: One item each.
            every: Seconds between two kills.
            seed: Decides who is killed.
            watch: Called with the tally several times a second.
        """
        tally = self.tally
        saboteur = Saboteur(self.kill, workers=tally.workers, every=every, seed=seed)
        tally.kills = saboteur.kills
        for file in files:
            self.queue.put(file)
        started = time.monotonic()
        with self._escapes_noted():
            self.threads += [self._hire() for _ in range(tally.workers)]
            threading.Thread(target=self._supervise, daemon=True).start()
            watchdogs = {
                "no worker moves any more": (Watchdog(1.0), self._positions),
                "no item is finished any more": (Watchdog(5.0), lambda: tally.finished),
                "it takes too long": (Watchdog(max(20.0, 0.1 * len(files))), lambda: None),
            }
            with saboteur:
                # What `queue.join()` waits for, but with an end to it.
                while self.queue.unfinished_tasks and not tally.hung:
                    time.sleep(GLANCE)
                    tally.starts = len(self.starts)
                    tally.seconds = time.monotonic() - started
                    watch(tally)
                    for why, (watchdog, progress) in watchdogs.items():
                        if watchdog.stuck(progress()):
                            tally.hung = why
                            break
            self._settle()
        watch(tally)

    def _hire(self) -> threading.Thread:
        thread = threading.Thread(target=self.work, name="naive", daemon=True)
        thread.start()
        return thread

    def _supervise(self) -> None:
        """Replace workers that died.

        In a thread of its own, because a kill that strikes a thread inside
        `threading` itself can make every later `Thread.start` hang.
        """
        while not self.over:
            time.sleep(GLANCE)
            for index, thread in enumerate(self.threads):
                if not thread.is_alive():
                    with self._hiring:
                        self.threads[index] = self._hire()

    def _positions(self) -> list[object]:
        """How much was begun, and the bytecode at which each worker is."""
        frames = sys._current_frames()  # noqa: SLF001 (there is no public way)
        found = (frames.get(thread.ident or 0) for thread in self.threads)
        places = [frame and (frame.f_code, frame.f_lasti) for frame in found]
        return [len(self.starts), *places]

    def _settle(self) -> None:
        """Let the workers end what they are at, and count the damage."""
        living = sum(thread.is_alive() for thread in self.threads)
        self.over = True
        calm, limit = Watchdog(patience=0.3), time.monotonic() + 3.0
        while not calm.stuck(self._positions()) and time.monotonic() < limit:
            time.sleep(GLANCE)
        locks = {"the store's": self.lock, "the queue's": self.queue.mutex}
        tally = self.tally
        tally.held = [name for name, lock in locks.items() if lock.locked()]
        tally.starts = len(self.starts)
        tally.alive = 0 if tally.held else living
        left = list(self.queue.queue)
        tally.queued = {str(file) for file in left}
        tally.unacked = max(0, self.queue.unfinished_tasks - len(left))
        tally.acked_twice = sum("task_done" in escape for escape in self.escapes)
        tally.escaped = len(self.escapes)

    @contextmanager
    def _escapes_noted(self) -> Iterator[None]:
        """Note the exceptions that come out of the workers; do not print them."""
        before = threading.excepthook, sys.unraisablehook

        def note_end_of_thread(args: threading.ExceptHookArgs) -> None:
            if args.thread in self.threads:
                self.escapes.append(str(args.exc_value))
            else:
                before[0](args)

        def note_unraisable(args: sys.UnraisableHookArgs) -> None:
            if args.exc_type is Killed:
                self.escapes.append("unraisable")
            else:
                before[1](args)

        threading.excepthook, sys.unraisablehook = note_end_of_thread, note_unraisable
        try:
            yield
        finally:
            threading.excepthook, sys.unraisablehook = before
