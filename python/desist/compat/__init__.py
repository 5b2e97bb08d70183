"""The usual recipes to stop threads, under their own names, without their known faults.

    from desist.compat import func_timeout

Change the import of a package or of a snippet: locks are released, waits end, and no exception is
raised after the block. docs/six-ways.md shows the native way beside each recipe.
"""

from desist.compat._at_exit import cancel_at_exit
from desist.compat._kthread import KThread
from desist.compat._parent import Thread, parent_scope
from desist.compat._stoppable import StopEvent, StoppableThread
from desist.compat._timeouts import (
    FunctionTimedOut,
    ThreadingTimeout,
    TimeoutException,
    func_set_timeout,
    func_timeout,
    threading_timeoutable,
    timeout,
)

__all__ = [
    "FunctionTimedOut",
    "KThread",
    "StopEvent",
    "StoppableThread",
    "Thread",
    "ThreadingTimeout",
    "TimeoutException",
    "cancel_at_exit",
    "func_set_timeout",
    "func_timeout",
    "parent_scope",
    "threading_timeoutable",
    "timeout",
]
