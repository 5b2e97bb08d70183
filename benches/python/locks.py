"""A lock that nobody else wants."""

from collections.abc import Iterator

from measure import each, plain
from table import Row


def rows() -> Iterator[Row]:
    """All of them."""
    native, ours, reentrant, aiologic = each(
        [
            plain("with lock: pass", "import threading; lock = threading.Lock()"),
            plain("with lock: pass", "import desist; lock = desist.Lock()"),
            plain("with lock: pass", "import threading; lock = threading.RLock()"),
            plain("with lock: pass", "import aiologic; lock = aiologic.Lock()"),
        ]
    )
    peers = {"RLock": reentrant, "aiologic": aiologic}
    yield Row("with Lock(), free", "ns", ours, ("threading.Lock", native), peers=peers)
