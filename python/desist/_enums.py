"""The enums of the public surface.

The extension looks the members up by name, so a member's name is part of its interface.
"""

import enum


class CauseKind(enum.Enum):
    """The kind of event that cancelled a source or a scope."""

    EXPLICIT = "explicit"
    """By a call of cancel() or kill()."""
    DEADLINE = "deadline"
    """A deadline passed."""
    SIBLING_FAILED = "sibling_failed"
    """Another task of the same group failed."""
    SCOPE_EXITED = "scope_exited"
    """The scope or source above was left or closed."""
    SHUTDOWN = "shutdown"
    """A pool or the process is shutting down."""
    FORKED = "forked"
    """The process was forked, and this is the child."""
    REMOTE = "remote"
    """Another process has cancelled it, and has said so in a message."""


class TaskState(enum.Enum):
    """The state of a task."""

    PENDING = "pending"
    """Not started."""
    RUNNING = "running"
    """Its body runs."""
    CANCELLING = "cancelling"
    """Its body runs, and a cancel or a kill was requested."""
    DONE = "done"
    """Its body returned."""
    FAILED = "failed"
    """Its body raised an exception."""
    CANCELLED = "cancelled"
    """It was cancelled, and its body ended with Cancelled."""
    KILLED = "killed"
    """It was killed, and its body ended with Killed."""
    ABANDONED = "abandoned"
    """A kill could not end it; its body may still run."""


class KillOutcome(enum.Enum):
    """How a kill ended: the rung that ended the task."""

    ALREADY_DONE = "already_done"
    """The task had ended before."""
    COOPERATIVE = "cooperative"
    """The task ended by itself, or because it was cancelled."""
    AT_WAIT = "at_wait"
    """Killed was raised at a desist wait, or at the end of a block that had deferred it."""
    ASYNC_EXC = "async_exc"
    """Killed was raised as an asynchronous exception, anywhere in the body."""
    TRACE = "trace"
    """Killed was raised in front of every step of the body, so that the body could not go on."""
    SIGTERM = "sigterm"
    """The worker process got SIGTERM, and ended."""
    SIGKILL = "sigkill"
    """The worker process got SIGKILL, and ended."""
    ABANDONED = "abandoned"
    """No rung ended the task; its body may still run."""
