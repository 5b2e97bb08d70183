"""The latency of a wake-up: from just before the waking call until the sleeper runs Python."""

import threading
import time
from collections.abc import Callable, Iterator
from statistics import median

import aiologic
from measure import quantile
from table import Row

import desist

HAND_OVERS = 2_000
BUSY_HAND_OVERS = 200  # 5 ms each
BATCHES = (
    10  # a quantile is the median of those of the batches, so that one bad moment does not decide
)
FALLS_ASLEEP = 300e-6


class LockSide:
    """The floor: a lock that is released."""

    def __init__(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        self.wait, self.wake = lock.acquire, lock.release


class EventSide:
    """The standard library's event."""

    def __init__(self) -> None:
        event = threading.Event()
        self.wait, self.wake = event.wait, event.set


class AiologicSide:
    """The fastest peer."""

    def __init__(self) -> None:
        event = aiologic.Event()
        self.wait, self.wake = event.wait, event.set


class DesistSide:
    """`sleep` in a block that is cancelled."""

    def __init__(self) -> None:
        self.wait = self.sleep
        self.scope = desist.cancel_scope(timeout=60)
        self.wake = self.scope.cancel
        self.raised_at = 0

    def sleep(self) -> None:
        """Record the time at which the sleep raised; leaving the block takes its own time."""
        clock = time.perf_counter_ns
        with self.scope:
            try:
                desist.sleep(60)
            except desist.Cancelled:
                self.raised_at = clock()
                raise


Side = LockSide | EventSide | AiologicSide | DesistSide
SIDES = (LockSide, DesistSide, EventSide, AiologicSide)


class Sleeper:
    """The sleeping thread, one for all sides."""

    def __init__(self) -> None:
        self.side: Side | None = None
        self.begin, self.done = threading.Lock(), threading.Lock()
        self.begin.acquire()
        self.done.acquire()
        self.runs_at = 0
        self.left_at = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Sleep, and record the time of the wake-up."""
        clock = time.perf_counter_ns
        while self.begin.acquire() and self.side is not None:
            wait = self.side.wait
            wait()
            self.left_at = clock()
            self.runs_at = getattr(self.side, "raised_at", self.left_at)
            self.done.release()

    def hand_over(self, side: Side, then: Callable[["Sleeper"], None]) -> tuple[float, float]:
        """Microseconds from `wake` until the thread runs, and until it has left the block."""
        self.side, self.runs_at = side, 0
        wake = side.wake
        self.begin.release()
        time.sleep(FALLS_ASLEEP)
        start = time.perf_counter_ns()
        wake()
        then(self)
        return (self.runs_at - start) / 1e3, (self.left_at - start) / 1e3

    def end(self) -> None:
        """End the thread."""
        self.side = None
        self.begin.release()


def waits(sleeper: Sleeper) -> None:
    """Block the canceller."""
    sleeper.done.acquire()


def goes_on(sleeper: Sleeper) -> None:
    """Run Python in the canceller until the sleeper has run."""
    while not sleeper.runs_at:
        pass
    sleeper.done.acquire()


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    for then, count, then_what in (
        (waits, HAND_OVERS, "canceller then waits"),
        (goes_on, BUSY_HAND_OVERS, "canceller runs on"),
    ):
        figures = latencies(then, count)
        for part in (0.5, 0.99):
            (lock, _), (ours, left), (event, _), (aio, _) = (
                [of_batches(side, part, which) for which in (0, 1)] for side in figures
            )
            peers = {"desist, out of the block": left, "Event": event, "aiologic": aio}
            work = f"sleep, woken by cancel(), p{round(part * 100)}; {then_what}"
            yield Row(work, "us", ours, ("threading.Lock", lock), 1.3, peers)


def latencies(then: Callable[[Sleeper], None], count: int) -> list[list[tuple[float, float]]]:
    """Measure each side; its figures are in the order of the rounds."""
    sleeper = Sleeper()
    figures: list[list[tuple[float, float]]] = [[] for _ in SIDES]
    for number in range(-10, count):
        for turn in range(len(SIDES)):
            at = (number + turn) % len(SIDES)
            taken = sleeper.hand_over(SIDES[at](), then)
            if number >= 0:
                figures[at].append(taken)
    sleeper.end()
    return figures


def of_batches(figures: list[tuple[float, float]], part: float, which: int) -> float:
    """The median of the batches' quantiles."""
    size = len(figures) // BATCHES
    batches = [figures[at * size : (at + 1) * size] for at in range(BATCHES)]
    return median(quantile([pair[which] for pair in batch], part) for batch in batches)
