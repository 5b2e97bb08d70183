"""The enums, which the native core looks up here by name."""

import enum


class CauseKind(enum.Enum):
    """What kind of event cancelled something."""

    EXPLICIT = "explicit"
    """Somebody called cancel() or kill()."""
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


class TaskState(enum.Enum):
    """Where a task is in its life."""

    PENDING = "pending"
    """Not started."""
    RUNNING = "running"
    """Its body runs."""
    CANCELLING = "cancelling"
    """Its body runs and was asked to stop."""
    DONE = "done"
    """It returned."""
    FAILED = "failed"
    """An exception came out of it."""
    CANCELLED = "cancelled"
    """It was cancelled, and stopped."""
    KILLED = "killed"
    """It was killed."""
    ABANDONED = "abandoned"
    """It was given up, and may still run."""


class KillOutcome(enum.Enum):
    """How a kill ended: the rung of the ladder that it took."""

    ALREADY_DONE = "already_done"
    """There was nothing to kill any more."""
    COOPERATIVE = "cooperative"
    """It came to an end by itself, or because it was asked to."""
    AT_WAIT = "at_wait"
    """Killed was raised at a desist wait, or where a kill had been held off."""
    ASYNC_EXC = "async_exc"
    """Killed was raised by force, anywhere in the body."""
    TRACE = "trace"
    """Killed was raised in front of every step of the body, so that it could not go on."""
    SIGTERM = "sigterm"
    """Its worker process was told to terminate, and did."""
    SIGKILL = "sigkill"
    """Its worker process was killed."""
    ABANDONED = "abandoned"
    """Nothing ended it: it was given up, and may still run."""
