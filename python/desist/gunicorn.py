"""A worker class for gunicorn: `timeout` ends the request, and the worker lives.

    gunicorn -k desist.gunicorn.ThreadWorker --threads 8 --timeout 5 shop:app

Guarantees: a request that waits for longer than `timeout` gets its 503 at that time, and its thread
takes the next one. When the worker stops, requests that go on for too long get it before gunicorn
kills the process.

How: the application runs in a CancelMiddleware, whose shutdown() is called as soon as the worker
is no longer alive: that is how gthread's loop learns of each kind of stop, too. The pool has its
queue in front of `handle`; the seconds in there go to the middleware by a variable of the thread.

Relies on these parts of gunicorn's gthread: the loop, not the requests, notifies the arbiter;
connections go through `enqueue_req` to the pool, whose threads call `handle`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gunicorn.workers import gthread  # type: ignore[import-untyped]

from desist._core import current_time
from desist.wsgi import CancelMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["ThreadWorker"]

# The part of graceful_timeout that requests have when the worker stops. In the rest, waits are
# ended, clean-up code runs and the answers are sent, before the arbiter kills the process.
_PART_FOR_REQUESTS = 0.9


class ThreadWorker(gthread.ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's gthread worker, with a time limit for each request.

    `timeout` is the limit, in seconds, and 0 is none; it includes the time in which the request
    waits for a free thread. See CancelMiddleware for what happens then. gunicorn still replaces a
    worker whose main loop hangs for that long, which no request can bring about by waiting.

    When the worker stops, at a restart or after max_requests, say, its requests have nine tenths of
    `graceful_timeout`; then they are ended in the same way.
    """

    wsgi: WSGIApplication

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As gunicorn calls it."""
        self._requests: _Requests | None = None
        super().__init__(*args, **kwargs)

    @property
    def alive(self) -> bool:
        """Whether the worker takes new requests; gunicorn writes it."""
        return self._alive

    @alive.setter
    def alive(self, alive: bool) -> None:
        self._alive = alive
        if not alive and self._requests is not None:
            self._requests.shutdown(self.cfg.graceful_timeout * _PART_FOR_REQUESTS)

    def load_wsgi(self) -> None:
        """Load the application, and wrap it."""
        super().load_wsgi()
        self.wsgi = self._requests = _Requests(self.wsgi, timeout=self.cfg.timeout or None)

    def enqueue_req(self, conn: Any) -> None:
        """Put a connection with a request into the queue of the pool."""
        conn.enqueued = current_time()
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> object:
        """Handle a request, on a thread of the pool."""
        assert self._requests is not None  # noqa: S101 (for the type checker)
        self._requests.waiting.seconds = current_time() - conn.enqueued
        return super().handle(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait on the main thread, and notify the arbiter afterwards: in time for a short limit."""
        super().wait_for_and_dispatch_events(min(timeout, self.timeout or timeout))


class _Requests(CancelMiddleware):
    """The requests of one worker, whose time begins in the queue of the pool."""

    def __init__(self, app: WSGIApplication, *, timeout: float | None) -> None:
        super().__init__(app, timeout=timeout)
        # `seconds`: how long the next request of the thread has waited in the queue.
        self.waiting = threading.local()

    def _time_of_arrival(self) -> float:
        # Another request on the same connection has not waited.
        seconds: float = self.waiting.__dict__.pop("seconds", 0.0)
        return super()._time_of_arrival() - seconds
