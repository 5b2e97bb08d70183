"""Entering and leaving a block with a timeout."""

from collections.abc import Iterator

from measure import each, in_asyncio, in_block, in_task, in_trio, plain
from table import Row
from tokens import GET_IDENT


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    work = "with cancel_scope(timeout=5): pass"
    prepare = "from desist import cancel_scope"
    ident, ours, nested, after, gevent, asyncio, anyio, trios, stopit = each(
        [
            GET_IDENT,
            plain(work, prepare),
            in_block(plain(work, prepare)),
            plain("with move_on_after(5): pass", "from desist import move_on_after"),
            plain("with Timeout(5): pass", "from gevent import Timeout"),
            in_asyncio("async with asyncio.timeout(5): pass", "import asyncio"),
            in_asyncio("with anyio.move_on_after(5): pass", "import anyio"),
            in_trio("with trio.move_on_after(5): pass"),
            plain("with ThreadingTimeout(5): pass", "from stopit import ThreadingTimeout"),
        ]
    )
    floor = ("get_ident()", ident)
    peers = {"gevent": gevent, "asyncio": asyncio, "anyio": anyio, "trio": trios, "stopit": stopit}
    yield Row("with cancel_scope(timeout=5)", "ns", ours, floor, 15, peers)
    yield Row("with cancel_scope(timeout=5), in another one", "ns", nested, floor)
    yield Row("with move_on_after(5)", "ns", after, floor)
    yield from masks()


def masks() -> Iterator[Row]:
    """A block that defers kills; the floor is a block in C that is made anew each time."""
    work, prepare = "with defer_kill(1): pass", "from desist import defer_kill"
    in_c, outside, inside, lock = each(
        [
            plain("with memoryview(data): pass", "data = b''"),
            plain(work, prepare),
            in_task(plain(work, prepare)),
            plain("with lock: pass", "import threading; lock = threading.Lock()"),
        ]
    )
    floor, peers = ("memoryview()", in_c), {"threading.Lock, made before": lock}
    yield Row("with defer_kill(1)", "ns", outside, floor, None, peers)
    yield Row("with defer_kill(1), in a task", "ns", inside, floor, None, peers)
