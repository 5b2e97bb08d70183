"""The crash test: hosts that share a queue are killed, and every item is still done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import crash_host
from desist.engines import open_queue
from engine_model import counts
from support import drained

if TYPE_CHECKING:
    from pathlib import Path


def crash(url: str, folder: Path, *, items: int, kills: int) -> None:
    """I33: workers on three hosts are killed at random until all is done, and nothing is lost."""
    rng, more = random.Random(33), items // 10
    effects = folder / "effects"
    command = [sys.executable, crash_host.__file__, f"{url}&lease_timeout=3", str(effects)]
    with ExitStack() as stack:
        queue = stack.enter_context(open_queue(url))
        hosts = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(3)
        ]
        for item in range(items):
            queue.put(item)
        processes = [start_process(host) for host in hosts]
        killed = 0
        while killed < kills:
            time.sleep(rng.random() * 0.05)  # the kill comes at a random moment
            which = rng.randrange(len(hosts))
            os.kill(processes[which], signal.SIGKILL)
            processes[which] = start_process(hosts[which])
            killed += 1
            if queue.counts()["ready"] < more:
                for _ in range(more):
                    queue.put(items)
                    items += 1
        assert drained(queue)
        assert queue.counts() == counts(done=items)
    check_effects(effects, items, killed)


def start_process(host: subprocess.Popen[str]) -> int:
    assert host.stdin is not None
    assert host.stdout is not None
    host.stdin.write("\n")
    host.stdin.flush()
    return int(host.stdout.readline())


def check_effects(effects: Path, items: int, killed: int) -> None:
    attempts: dict[int, list[int]] = {}
    for line in effects.read_text(encoding="utf-8").splitlines():
        item, attempt = map(int, line.split())
        attempts.setdefault(item, []).append(attempt)
    assert attempts.keys() == set(range(items)), "lost"
    for of_item in attempts.values():
        assert of_item == sorted(set(of_item)), "an attempt that was not counted"
    reruns = sum(len(of_item) - 1 for of_item in attempts.values())
    in_vain = sum(of_item[-1] - 1 for of_item in attempts.values())
    figures = f"{items} items, {killed} kills, {in_vain} attempts in vain, {reruns} effects twice"
    sys.stdout.write(f"{figures}\n")  # for `pytest -rP`
    assert reruns <= in_vain <= killed * crash_host.WORKERS
