"""cancel_with(): a thread that is cancelled together with a token."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from desist._core import CancelToken, Registration
    from desist._thread import Thread


def cancel_with(token: CancelToken, thread: Thread, reason: str) -> Registration:
    """Cancel `thread` when `token` is cancelled.

    The callback is made of native parts. It runs on the cancelling thread, and a kill of that
    thread, raised in Python code here, would end the callback before it has done anything.
    """
    cancel = map(thread._task.cancel, itertools.repeat(reason))  # noqa: SLF001 (its own package)
    return token.on_cancel(functools.partial(next, cancel))
