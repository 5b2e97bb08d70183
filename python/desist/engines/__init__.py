"""Queues on a server, for workers on several hosts.

    import desist

    with desist.WorkerPool(handler, queue="redis://localhost/0?stream=jobs") as pool:
        pool.submit({"page": 17})

`Engine` is the port: an adapter for another server implements its methods, and `EngineQueue` does
everything else.
"""

from desist.engines._open import open_queue
from desist.engines._port import Delivery, Engine
from desist.engines._queue import EngineQueue

__all__ = ["Delivery", "Engine", "EngineQueue", "open_queue"]
