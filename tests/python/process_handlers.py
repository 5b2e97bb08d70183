"""Handlers for test_pool_process.py, in a module that worker processes import without pytest."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

import desist

if TYPE_CHECKING:
    from desist import Lease


def tell(path: str, *what: object) -> None:
    """Write a line in one piece into an existing pipe or file."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, (" ".join(map(str, what)) + "\n").encode())
    os.close(fd)


def until_told(path: str) -> None:
    """Wait for a line in C, and repeat the wait when a signal interrupts it."""
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 1)
    os.close(fd)


def double(lease: Lease[int]) -> int:
    return lease.item * 2


def pid(_: Lease[object]) -> int:
    return os.getpid()


def attempt(lease: Lease[object]) -> int:
    return lease.attempt


def same(lease: Lease[Any]) -> Any:
    return lease.item


def fail(lease: Lease[str]) -> NoReturn:
    raise ZeroDivisionError(lease.attempt)


def raise_kind(_: Lease[object]) -> None:
    """Fails, unless it ends with its pool."""
    try:
        desist.sleep_forever()
    except (desist.Cancelled, desist.Killed) as stopped:
        if stopped.cause.kind is not desist.CauseKind.SHUTDOWN:
            raise ValueError(stopped.cause.kind) from None
        raise


def throw(raised: BaseException) -> NoReturn:
    raise raised


def throw_item(lease: Lease[BaseException]) -> NoReturn:
    throw(lease.item)


class OnlyHereError(LookupError):
    """An object whose pickle cannot be loaded."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("cannot be made again")
        self.sum = one + other


def fail_in_a_way_of_its_own(_: Lease[object]) -> NoReturn:
    raise OnlyHereError(1, 2)


def fail_with_key_error(_: Lease[object]) -> NoReturn:
    raise KeyError


def end_early(lease: Lease[str]) -> int:
    """Discards an item, or snoozes it until it was snoozed twice."""
    how, _, path = lease.item.partition(" ")
    if how == "discard":
        lease.discard("no such page")
    else:
        tell(path, lease.attempt)
        count = path + ".count"
        with open(count, "a+") as file:  # noqa: PTH123 (a module without pytest loads little)
            file.write("x")
            file.seek(0)
            if len(file.read()) < 3:
                lease.snooze(0)
    return lease.attempt


class Unreadable:
    """An object whose pickle cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def unreadable(_: Lease[object]) -> Unreadable:
    return Unreadable()


def function(_: Lease[object]) -> Any:
    return lambda: None


def face(lease: Lease[Any]) -> Any:
    return lease.item, lease.id, lease.attempt, lease.epoch, lease.token.cancelled, repr(lease)


def acknowledge(lease: Lease[int]) -> None:
    with lease.commit():
        lease.ack(lease.item + 1)


def acknowledge_twice(lease: Lease[object]) -> str:
    lease.ack()
    try:
        lease.ack()
    except desist.Fenced as fenced:
        return str(fenced)
    return "not fenced"


def hand_back(lease: Lease[int]) -> int:
    if lease.attempt < 3:
        lease.nack(reason="not now")
    return lease.attempt


def effective_deadline(_: Lease[object]) -> float:
    return desist.current_effective_deadline()


# --- ends of the process --------------------------------------------------------------------------


def exit_at_once(lease: Lease[int]) -> int:
    if lease.attempt == 1:
        os._exit(lease.item)
    return lease.attempt


def exit_by_exception(lease: Lease[int]) -> int:
    if lease.attempt == 1:
        sys.exit(lease.item)
    return lease.attempt


def crash(lease: Lease[int]) -> int:
    if lease.attempt == 1:
        ctypes.string_at(0)
    return lease.attempt


def signal_itself(lease: Lease[int]) -> int:
    if lease.attempt == 1:
        os.kill(os.getpid(), lease.item)
        until_killed()
    return lease.attempt


def until_killed() -> NoReturn:
    stuck = threading.Lock()
    stuck.acquire()
    while True:
        stuck.acquire(timeout=1000)  # a wait that no cancellation ends


def always_dies(lease: Lease[int]) -> NoReturn:
    os._exit(lease.attempt)


def fork(_: Lease[object]) -> int:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return os.getpid()


# --- handlers that are stopped --------------------------------------------------------------------


def sleep(lease: Lease[str]) -> int:
    """Sleep in a system call, which a signal interrupts."""
    if lease.attempt == 1:
        tell(lease.item, os.getpid())
        until_killed()
    return lease.attempt


def sleep_with_finally(lease: Lease[str]) -> int:
    if lease.attempt == 1:
        try:
            tell(lease.item, os.getpid())
            until_killed()
        finally:
            tell(lease.item, "cleaned")
    return lease.attempt


def wait(lease: Lease[str]) -> int:
    """Sleep in a desist wait."""
    if lease.attempt == 1:
        tell(lease.item, os.getpid())
        try:
            desist.sleep_forever()
        except desist.Cancelled as cancelled:
            tell(lease.item, cancelled.cause.kind.name, cancelled.cause.reason)
            raise
    return lease.attempt


def wait_shielded(lease: Lease[str]) -> int:
    if lease.attempt == 1:
        with desist.shield(float("inf")):
            tell(lease.item, os.getpid())
            desist.sleep_forever()
    return lease.attempt


def look(lease: Lease[str]) -> int:
    """Compute, and poll the token now and then."""
    if lease.attempt == 1:
        tell(lease.item, os.getpid())
        token = lease.token
        while not token.cancelled:
            pass
        token.check()
    return lease.attempt


def spin(lease: Lease[str]) -> int:
    """Compute, and poll nothing."""
    if lease.attempt == 1:
        tell(lease.item, os.getpid())
        while True:
            pass
    return lease.attempt


def swallow(lease: Lease[str]) -> int:
    if lease.attempt > 1:
        return lease.attempt
    telling = True
    while True:
        with contextlib.suppress(BaseException):
            if telling:
                telling = False
                tell(lease.item, os.getpid())
            while True:
                with contextlib.suppress(BaseException):
                    until_killed()


def block(lease: Lease[str]) -> int:
    """Run C code that does not return and keeps the GIL."""
    if lease.attempt == 1:
        mutex = ctypes.create_string_buffer(64)
        library = ctypes.PyDLL(None)
        library.pthread_mutex_lock(mutex)
        with desist.defer_kill(math.inf):  # SIGTERM is handled only after that
            tell(lease.item, os.getpid())
            library.pthread_mutex_lock(mutex)
    return lease.attempt


def start_others(lease: Lease[str]) -> int:
    if lease.attempt == 1:
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        tell(lease.item, os.getpid(), other.pid)
        until_killed()
    return lease.attempt


def commit_slowly(lease: Lease[tuple[str, str]]) -> int:
    """Wait in the commit until the test lets it end."""
    there, here = lease.item
    with lease.commit():
        tell(there, os.getpid(), lease.attempt)
        until_told(here)
        lease.ack(lease.attempt)
    until_killed()


def append(lease: Lease[tuple[str, str, int]]) -> None:
    """Have an effect, then acknowledge."""
    effects, told, number = lease.item
    tell(effects, number, lease.attempt)
    tell(told, os.getpid())


def coroutine(_: Lease[object]) -> object:
    async def work() -> None:
        sys.exit("the code ran")

    return work()


class DecodesToPid:
    """Is decoded to the pid of the process that does it."""

    def __reduce__(self) -> Any:
        return os.getpid, ()


class HangsInDecoder:
    """Tells that its decoding has begun, and hangs in C; another decoding has a result."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return hang_once, (self.path,)


def hang_once(path: str) -> str:
    done = f"{path}-done"
    if os.path.exists(done):  # noqa: PTH110 (a module without pathlib)
        return "decoded"
    os.close(os.open(done, os.O_CREAT))
    tell(path, "begun")
    time.sleep(1e6)
    raise AssertionError


class DiesInDecoder:
    """Ends the process that decodes it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)
