"""One side of kills.py: `python killed.py SIDE KILLS SECONDS` prints its figures as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

WORKERS = 8
SUPPLY = 32
"""The number of items that are ready or worked on while there are kills."""
LENGTH = 20_000
"""Iterations of the loop that is the work: half a millisecond, if no other thread has the GIL."""
PAUSE = 0.0002
"""Seconds between two kills, on the sides whose kill does not wait for the end."""
PATIENCE = 5.0
"""A side is stuck after this many seconds without a finished item."""


class Side:
    """The items and the counts, which all sides have."""

    def __init__(self) -> None:
        self.lock: Any = threading.Lock()
        self.done: list[int] = []
        self.acked: list[int] = []
        self.items = 0
        self.kills = 0
        self.outside = 0
        self.dice = random.Random(1)

    def work(self, item: int) -> None:
        """Take some time, then finish the item under the lock."""
        for _ in range(LENGTH):
            pass
        with self.lock:
            for _ in range(50):
                pass
            self.done.append(item)

    # The methods that each side implements.

    def start(self) -> None:
        """Start the workers."""

    def submit(self, item: int) -> None:
        """Give the workers an item."""
        raise NotImplementedError

    def kill(self) -> None:
        """Kill one worker, at whatever point of its code."""
        raise NotImplementedError

    def calm(self) -> None:
        """End the kills."""

    def queued(self) -> set[int]:
        """The items that were not begun, or were put back."""
        raise NotImplementedError

    def alive(self) -> int:
        """The number of workers that are alive."""
        raise NotImplementedError

    def stuck(self) -> int:
        """The number of locks that are held."""
        return int(self.lock.locked())


class Watch:
    """Checks that a side makes progress, within its time."""

    def __init__(self, side: Side, at_most: float) -> None:
        self.side = side
        self.at_most = at_most
        self.seen = 0
        self.restart()

    def restart(self) -> None:
        """Start the next part of the run."""
        self.begin = self.moved = time.monotonic()

    def stuck(self) -> bool:
        now = time.monotonic()
        if len(self.side.done) != self.seen:
            self.seen, self.moved = len(self.side.done), now
        return now - self.moved > PATIENCE or now - self.begin > self.at_most

    def wait(self, until: Callable[[], bool]) -> bool:
        while not until():
            if self.stuck():
                return False
            time.sleep(0.01)
        return True


def measure(side: Side, kills: int, seconds: float) -> dict[str, Any]:
    """Kill that many times, and count the remains."""
    sys.setswitchinterval(1e-5)
    watch = Watch(side, seconds)
    side.start()
    # In a thread of its own, because the kill itself may get stuck.
    killer = threading.Thread(target=kill_all, args=(side, kills, watch), daemon=True)
    killer.start()
    watch.wait(lambda: not killer.is_alive())
    taken = time.monotonic() - watch.begin
    side.calm()
    watch.restart()
    ended = watch.wait(lambda: len(set(side.done)) >= side.items and finished(side))
    done = Counter(side.done)
    figures = {
        "kills": side.kills,
        "seconds": taken,
        "items": side.items,
        "twice": sum(count > 1 for count in done.values()),
        "lost": len(set(range(side.items)) - set(done) - side.queued()),
        "unended": 0 if ended else abs(side.items - len(side.acked)),
        "stuck": 0 if ended else side.stuck(),
        "outside": side.outside,
        "workers": WORKERS,
    }
    further = range(side.items, side.items + WORKERS)
    threading.Thread(target=lambda: [*map(side.submit, further)], daemon=True).start()
    watch.restart()
    figures["goes_on"] = watch.wait(lambda: set(further) <= set(side.done))
    figures["alive"] = side.alive()
    return figures


def finished(side: Side) -> bool:
    """Whether all items have been acknowledged."""
    return len(side.acked) >= side.items


def kill_all(side: Side, kills: int, watch: Watch) -> None:
    """Kill, and keep the workers supplied with items."""
    while side.kills < kills and not watch.stuck():
        while side.items - len(side.acked) < SUPPLY:
            side.submit(side.items)
            side.items += 1
        side.kill()


# --- desist ---------------------------------------------------------------------------------------


class Desist(Side):
    """A WorkerPool, whose workers are killed."""

    def start(self) -> None:
        import desist

        self.lock = desist.Lock(on_kill="release")
        self.queue: Any = desist.LeaseQueue(retry=desist.RetryPolicy(max_attempts=1_000_000))
        policy = desist.StopPolicy(cooperative=0, at_wait=0, async_exc=60, defer=0)
        self.idle = desist.KillOutcome.ALREADY_DONE
        self.pool: Any = desist.WorkerPool(
            self.handle, workers=WORKERS, queue=self.queue, policy=policy
        )

    def handle(self, lease: Any) -> None:
        for _ in range(LENGTH):
            pass
        with self.lock:
            for _ in range(50):
                pass
        with lease.commit():
            self.done.append(lease.item)
            lease.ack()
            self.acked.append(lease.item)

    def submit(self, item: int) -> None:
        self.pool.submit(item)

    def kill(self) -> None:
        report = self.pool.workers[self.dice.randrange(WORKERS)].kill()
        self.kills += report.outcome is not self.idle

    def queued(self) -> set[int]:
        return set()  # every item that is not done counts as lost

    def alive(self) -> int:
        return int(self.pool.workers_alive())


# --- asynchronous exceptions ----------------------------------------------------------------------


class AsyncKill(BaseException):
    """The exception that is raised in a worker."""


class Recipe(Side):
    """threading, queue, and PyThreadState_SetAsyncExc: the usual recipe."""

    exception: type[BaseException] = AsyncKill
    make_thread: Callable[..., threading.Thread] = threading.Thread

    def start(self) -> None:
        self.queue: queue.Queue[int] = queue.Queue()
        self.begun: set[int] = set()
        self.over = False
        threading.excepthook = self.note_end
        sys.unraisablehook = self.note_unraisable
        self.threads = [self.start_worker() for _ in range(WORKERS)]
        threading.Thread(target=self.supervise, daemon=True).start()

    def start_worker(self) -> threading.Thread:
        thread = type(self).make_thread(target=self.serve, daemon=True)
        thread.start()
        return thread

    def supervise(self) -> None:
        while True:
            time.sleep(0.01)
            for index, thread in enumerate(self.threads):
                if not thread.is_alive():
                    self.threads[index] = self.start_worker()

    def serve(self) -> None:
        while True:
            item = self.queue.get()
            try:
                self.work(item)
                self.acked.append(item)
            except self.exception as killed:
                self.note(killed.__traceback__)
                self.queue.put(item)
            finally:
                self.queue.task_done()

    def submit(self, item: int) -> None:
        self.queue.put(item)

    def kill(self) -> None:
        thread = self.threads[self.dice.randrange(WORKERS)]
        if thread.is_alive():
            self.raise_in(thread)
            self.kills += 1
        time.sleep(PAUSE)

    def raise_in(self, thread: threading.Thread) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(self.exception)
        )

    def queued(self) -> set[int]:
        return set(self.queue.queue)

    def alive(self) -> int:
        return sum(thread.is_alive() for thread in self.threads)

    def stuck(self) -> int:
        return self.lock.locked() + self.queue.mutex.locked()

    def note(self, trace: TracebackType | None) -> None:
        """Count an exception that was raised outside of the work."""
        while trace is not None:
            if trace.tb_frame.f_code is Side.work.__code__:
                return
            trace = trace.tb_next
        self.outside += 1

    def note_end(self, args: Any) -> None:
        self.note(args.exc_traceback)

    def note_unraisable(self, args: Any) -> None:
        self.note(args.exc_traceback)


def kthread() -> Side:
    """KThread and its terminate()."""
    from kthread import KThread

    class Kthread(Recipe):
        exception = SystemExit
        make_thread = KThread

        def serve(self) -> None:
            try:
                super().serve()
            except SystemExit as killed:  # threading takes it for a normal end
                self.note(killed.__traceback__)
                raise

        def raise_in(self, thread: Any) -> None:
            try:
                thread.terminate()
            except (ValueError, threading.ThreadError):
                self.kills -= 1  # it has just ended

    return Kthread()


def dramatiq() -> Side:
    """The interrupts of dramatiq's middleware."""
    from dramatiq.threading import Interrupt, raise_thread_exception

    class Dramatiq(Recipe):
        exception = Interrupt

        def raise_in(self, thread: threading.Thread) -> None:
            raise_thread_exception(thread.ident, Interrupt)

    return Dramatiq()


# --- timeouts -------------------------------------------------------------------------------------


class TimedOut(Recipe):
    """Each item has a timeout of random length; one that is too short is a kill."""

    def kill(self) -> None:
        time.sleep(PAUSE)

    def calm(self) -> None:
        self.over = True

    def seconds(self) -> float:
        """The timeout of the next item."""
        return 60.0 if self.over else self.dice.random() * 0.01

    def in_time(self, item: int) -> bool:
        """Work on it; False if it took too long."""
        raise NotImplementedError

    def serve(self) -> None:
        while True:
            item = self.queue.get()
            try:
                if self.in_time(item):
                    self.acked.append(item)
                else:
                    self.kills += 1
                    self.queue.put(item)
            finally:
                self.queue.task_done()


def stopit() -> Side:
    """Stopit's block with a timeout."""
    import warnings

    warnings.filterwarnings("ignore", "pkg_resources is deprecated")
    from stopit import ThreadingTimeout

    class Stopit(TimedOut):
        def in_time(self, item: int) -> bool:
            with ThreadingTimeout(self.seconds()) as block:
                self.work(item)
            return bool(block)

    return Stopit()


def func_timeout() -> Side:
    """func_timeout's call with a timeout, on a thread of its own."""
    from func_timeout import FunctionTimedOut
    from func_timeout import func_timeout as call

    class FuncTimeout(TimedOut):
        def in_time(self, item: int) -> bool:
            try:
                call(self.seconds(), self.work, args=(item,))
            except FunctionTimedOut:
                return False
            return True

    return FuncTimeout()


# --- processes ------------------------------------------------------------------------------------


def in_process(item: int) -> int:
    """The work in a process, where no lock is shared."""
    for _ in range(LENGTH):
        pass
    return item


class Pebble(Side):
    """pebble's pool of processes; cancelling a future kills the process that works on it."""

    def start(self) -> None:
        from pebble import ProcessPool

        self.pool = ProcessPool(max_workers=WORKERS)
        self.futures: dict[int, Any] = {}
        self.mutex = threading.Lock()
        self.again: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self.repeat, daemon=True).start()

    def repeat(self) -> None:
        while True:
            self.submit(self.again.get())

    def submit(self, item: int) -> None:
        future = self.pool.schedule(in_process, args=[item])
        with self.mutex:
            self.futures[item] = future
        future.add_done_callback(partial(self.ended, item))

    def ended(self, item: int, future: Any) -> None:
        with self.mutex:
            self.futures.pop(item, None)
        if future.cancelled() or future.exception() is not None:
            self.again.put(item)  # submitted by another thread: this one is the pool's own
        else:
            self.done.append(future.result())
            self.acked.append(item)

    def kill(self) -> None:
        with self.mutex:
            running = [future for future in self.futures.values() if future.running()]
        if running:
            self.kills += self.dice.choice(running).cancel()
        time.sleep(PAUSE)

    def queued(self) -> set[int]:
        return set(self.futures)

    def alive(self) -> int:
        return WORKERS if self.pool.active else 0


MAKE: dict[str, Callable[[], Side]] = {
    "desist": Desist,
    "threading": Recipe,
    "stopit": stopit,
    "func_timeout": func_timeout,
    "kthread": kthread,
    "dramatiq": dramatiq,
    "pebble": Pebble,
}


if __name__ == "__main__":
    name, kills, seconds = sys.argv[1:]
    print(json.dumps(measure(MAKE[name](), int(kills), float(seconds))), flush=True)
    os._exit(0)  # does not wait for a stuck thread
