"""A "host" for crash tests: `python crash_host.py URL FILE` forks a worker process per line.

Each works on the queue with two workers, whose handler appends its item and attempt to the file.
It answers with the process's id. The queue's modules are imported once, so that a process that is
killed is soon replaced.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import desist
from desist import RetryPolicy, WorkerPool
from desist.engines import open_queue

if TYPE_CHECKING:
    from desist import Lease

WORKERS = 2
POLICY = RetryPolicy(max_attempts=1000)


def work(url: str, file: str, alive: int) -> NoReturn:
    effects = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handler(lease: Lease[int]) -> None:
        desist.sleep(0.002)
        os.write(effects, f"{lease.item} {lease.attempt}\n".encode())
        desist.sleep(0.002)

    _pool = WorkerPool(handler, queue=open_queue(url, retry=POLICY), workers=WORKERS)
    os.read(alive, 1)  # until this process is killed with its host
    os._exit(0)


def main(url: str, file: str) -> None:
    open_queue(url).close()  # imports the engine's module before the forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    alive, host = os.pipe()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(host)
            work(url, file, alive)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
