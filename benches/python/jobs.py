"""Items that are leased and acknowledged, in memory and in a file, against comparable queues.

Items are 200 bytes. Rows with several threads, and rows that write to a disk (that of TMPDIR, or of
the folder for temporary files), are measured by the wall clock.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import TYPE_CHECKING, Any

import persistqueue
import redis
from measure import each, plain
from table import Row

import desist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ITEM = bytes(200)
ITEMS = 60_000
"""Items of a round in memory."""
FILED = 4_000
"""Items of a round in a file."""
PUT = 100_000
KEPT = 100_000
"""Items whose memory is measured."""
OPENED = 1_000_000
ROUNDS = 7
FILE_ROUNDS = 3
SERVERS = Path(__file__).parents[2] / "target" / "servers"


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    yield from in_memory()
    yield in_a_pool()
    with tempfile.TemporaryDirectory() as folder, redis_stream(Path(folder)) as stream:
        yield from in_a_file(Path(folder), stream)
        yield from many(Path(folder))
    yield from sizes()


# ---------------------------------------------------------------------- in memory


def in_memory() -> Iterator[Row]:
    """Measure in memory. The floor is a queue without acknowledgements: its put and get."""
    prepare = f"import desist, queue; item = bytes({len(ITEM)}); q = "
    filled = "; [q.put(item) for _ in range(times + 5)]"
    floor, leased, ours = each(
        [
            plain("q.put(item); q.get()", prepare + "queue.SimpleQueue()"),
            plain("q.lease().ack()", prepare + "desist.LeaseQueue()" + filled),
            plain("q.put(item); q.lease().ack()", prepare + "desist.LeaseQueue()"),
        ]
    )
    yield Row("LeaseQueue: lease, ack", "ns", leased, ("SimpleQueue: put, get", floor), 1.5)
    yield Row("LeaseQueue: put, lease, ack", "ns", ours, ("SimpleQueue: put, get", floor))
    figures: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(ROUNDS):
        simple, leases = SimpleQueue(), desist.LeaseQueue[bytes]()
        figures["floor"].append(together(4, ITEMS, lambda count, q=simple: pass_on(q, count)))
        figures["ours"].append(together(4, ITEMS, lambda count, q=leases: work_off(q, count)))
    floor, ours = median(figures["floor"]), median(figures["ours"])
    yield Row(
        "LeaseQueue: put, lease, ack, 4 threads", "ns", ours, ("SimpleQueue: put, get", floor)
    )


def pass_on(queue: Any, count: int) -> None:
    """Put and get."""
    for _ in range(count):
        queue.put(ITEM)
        queue.get()


def work_off(queue: Any, count: int) -> None:
    """Put, lease and acknowledge."""
    for _ in range(count):
        queue.put(ITEM)
        queue.lease().ack()


def together(threads: int, items: int, work: Callable[[int], None]) -> float:
    """Nanoseconds of wall time for each item, divided among the threads."""
    workers = [threading.Thread(target=work, args=(items // threads,)) for _ in range(threads)]
    start = time.perf_counter_ns()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter_ns() - start) / items


def in_a_pool() -> Row:
    """Measure a pool with an empty handler; the floor is a thread that calls it in a loop."""

    def handler(_: object) -> None:
        pass

    def bare(count: int) -> float:
        items = SimpleQueue()
        for _ in range(count):
            items.put(ITEM)

        def loop() -> None:
            for _ in range(count):
                handler(items.get())

        return together(1, count, lambda _: loop())

    def pooled(count: int) -> float:
        items = desist.LeaseQueue[bytes]()
        for _ in range(count):
            items.put(ITEM)
        start = time.perf_counter_ns()
        with desist.WorkerPool(handler, queue=items, workers=1) as pool:
            pool.drain()
        return (time.perf_counter_ns() - start) / count

    floors, ours = zip(*[(bare(ITEMS), pooled(ITEMS)) for _ in range(ROUNDS)], strict=True)
    floor = ("SimpleQueue and a loop", median(floors))
    return Row("WorkerPool: an item, 1 worker", "ns", median(ours), floor)


# ---------------------------------------------------------------------- in a file


class Filed:
    """A FileQueue, behind the interface of all sides."""

    def __init__(self, path: Path) -> None:
        self.queue = desist.FileQueue[bytes](path)

    def fill(self, count: int) -> None:
        """Put `count` items."""
        self.queue.put_many([ITEM] * count)

    def work_off(self, count: int) -> None:
        """Lease and acknowledge `count` items."""
        for _ in range(count):
            lease = self.queue.lease()
            if lease is not None:
                lease.ack()


class Persisted:
    """The queue of persist-queue; its every get and ack is a transaction."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self.queue = persistqueue.SQLiteAckQueue(str(path), multithreading=True)
        for connection in (self.queue._putter, self.queue._getter):  # noqa: SLF001 (it has no option for it)
            connection.execute(f"PRAGMA synchronous = {synchronous}")

    def fill(self, count: int) -> None:
        """Put `count` items."""
        for _ in range(count):
            self.queue.put(ITEM)

    def work_off(self, count: int) -> None:
        """Lease and acknowledge `count` items."""
        for _ in range(count):
            self.queue.ack(self.queue.get(raw=True))


class Streamed:
    """A Redis stream with one consumer and one client for each thread, as its guide says."""

    def __init__(self, port: int) -> None:
        self.connect: Callable[[], Any] = lambda: redis.Redis(port=port)
        with suppress(redis.ResponseError):
            self.connect().xgroup_create("jobs", "bench", id="0", mkstream=True)

    def fill(self, count: int) -> None:
        """Put `count` items."""
        pipeline = self.connect().pipeline()
        for _ in range(count):
            pipeline.xadd("jobs", {"item": ITEM})
        pipeline.execute()

    def work_off(self, count: int) -> None:
        """Lease and acknowledge `count` items."""
        client = self.connect()
        name = threading.current_thread().name
        for _ in range(count):
            [[_, [[item, _]]]] = client.xreadgroup("bench", name, {"jobs": ">"}, count=1)
            client.xack("jobs", "bench", item)


def in_a_file(folder: Path, stream: int | None) -> Iterator[Row]:
    """Measure in a file. Like NORMAL, FileQueue does not sync each acknowledgement."""
    sides: dict[str, Any] = {
        "ours": Filed(folder / "jobs.db"),
        "NORMAL": Persisted(folder / "normal", "NORMAL"),
        "FULL": Persisted(folder / "full", "FULL"),
    }
    if stream is not None:
        sides["Redis"] = Streamed(stream)
    for threads in (1, 8):
        figures: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(FILE_ROUNDS):
            for name, side in sides.items():
                items = FILED if name == "ours" else FILED // 10
                side.fill(items)
                figures[name].append(together(threads, items, side.work_off) / 1e3)
        medians = {name: median(taken) for name, taken in figures.items()}
        ours = medians["ours"]
        work = f"FileQueue: lease, ack, {threads} thread{'s' * (threads > 1)}"
        normal = ("SQLiteAckQueue, NORMAL", medians["NORMAL"])
        full = {"the same, FULL as it comes": medians["FULL"]}
        yield Row(work + " (as durable)", "us", ours, normal, 1 / 2 if threads > 1 else None, full)
        if stream is None:
            print(f"{work}: Redis Streams: no server")
        else:
            yield Row(work, "us", ours, ("Redis, appendfsync always", medians["Redis"]), 1)


@contextmanager
def redis_stream(folder: Path) -> Iterator[int | None]:
    """Start a server, if its program is found, and give its port."""
    found = shutil.which("redis-server")
    paths = [Path(found)] if found else sorted(SERVERS.glob("**/bin/redis-server"))
    if not paths:
        yield None
        return
    root = next((parent for parent in paths[0].parents if parent.parent == SERVERS), None)
    libraries = {str(path.parent) for path in root.rglob("*.so*")} if root else set()
    environment = os.environ | ({"LD_LIBRARY_PATH": ":".join(sorted(libraries))} if root else {})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    options = ["--port", str(port), "--dir", str(folder), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "always"]
    command = [str(paths[0]), *options]
    server = subprocess.Popen(  # noqa: S603 (found above)
        command, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            try:
                redis.Redis(port=port).ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def many(folder: Path) -> Iterator[Row]:
    """Put 100,000 items: each durable before its put() returns, all at once, and in memory."""
    filed = desist.FileQueue[bytes](folder / "put.db")

    def put(queue: Any, count: int) -> None:
        for _ in range(count):
            queue.put(ITEM)

    one_by_one = together(8, PUT, lambda count: put(filed, count)) * PUT / 1e9
    start = time.perf_counter_ns()
    filed.put_many([ITEM] * PUT)
    at_once = (time.perf_counter_ns() - start) / 1e9
    yield Row(
        "FileQueue: put 100,000 items, 8 threads", "s", one_by_one, ("put_many, once", at_once)
    )
    held = together(1, PUT, lambda count: put(desist.LeaseQueue[bytes](), count)) * PUT / 1e6
    simple = together(1, PUT, lambda count: put(SimpleQueue(), count)) * PUT / 1e6
    yield Row("LeaseQueue: put 100,000 items", "ms", held, ("SimpleQueue", simple))
    folder.joinpath("put.db").unlink()


# ---------------------------------------------------------------------- sizes

KEEP = """
import queue, sys, desist
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
{make}
before = resident()
{put}
print((resident() - before) / {count})
"""


def kept(make: str, put: str) -> float:
    """Bytes by which a fresh process grows with each item; all items are the same object."""
    program = KEEP.format(make=f"item = bytes(200); {make}", put=put, count=KEPT)
    done = subprocess.run(  # noqa: S603 (ours)
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def sizes() -> Iterator[Row]:
    """Memory of a queued item, and the time to open a long queue."""
    put = f"for _ in range({KEPT}): q.put(item)"
    simple = kept("q = queue.SimpleQueue()", put)
    ours = kept("q = desist.LeaseQueue()", put)
    yield Row("LeaseQueue: memory of a queued item", "B", ours, ("SimpleQueue", simple))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        put = f"for _ in range({KEPT // 1_000}): q.put_many([item] * 1_000)"
        filed = kept(f"q = desist.FileQueue({str(path)!r}); q.put(item)", put)
        yield Row("FileQueue: memory of a queued item", "B", filed, ("SimpleQueue", simple))
        queue = desist.FileQueue[bytes](path)
        for _ in range(OPENED // PUT - 1):
            queue.put_many([ITEM] * PUT)
        del queue
        gc.collect()
        taken = []
        for _ in range(FILE_ROUNDS):
            start = time.perf_counter_ns()
            queue = desist.FileQueue[bytes](path)
            taken.append((time.perf_counter_ns() - start) / 1e6)
            del queue
            gc.collect()
        start = time.perf_counter_ns()
        path.read_bytes()
        read = (time.perf_counter_ns() - start) / 1e6
        yield Row("FileQueue: open, 1,000,000 items", "ms", median(taken), ("read the file", read))
