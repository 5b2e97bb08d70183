"""Queues that are kept by somebody else's engine, for workers on several hosts.

    import desist

    with desist.WorkerPool(handler, queue="redis://localhost/0?stream=jobs") as pool:
        pool.submit({"page": 17})

`Engine` is the port: who has another engine writes these verbs for it, and gets everything else
from `EngineQueue`.
"""

from desist.engines._open import open_queue
from desist.engines._port import Delivery, Engine
from desist.engines._queue import EngineQueue

__all__ = ["Delivery", "Engine", "EngineQueue", "open_queue"]
