"""Daemon threads in Python code at the interpreter's end: src/python/binding/forced_unwind.rs."""

from __future__ import annotations

import subprocess
import sys

import pytest

SETTING = """
import builtins, os, sys, tempfile, threading, time, warnings, desist
from desist.testing import run

desist.set_foreign(False)  # the code that lingers is not stopped

class LastObject:  # its finalizer lets the other threads come back while the interpreter ends
    def __del__(self, sleep=time.sleep):
        sleep(0.02)

def linger(*_, sleep=time.sleep, **__):
    inside.set()
    while True:
        sleep(0.0003)  # comes back to the interpreter, soon also while that is finalized

def start(body):
    threading.Thread(target=body, daemon=True).start()

class Lingers:
    '''Any use of it lingers.'''
    __call__ = __float__ = __index__ = __bool__ = __hash__ = __eq__ = __lt__ = __str__ = linger
    __reduce__ = __enter__ = fileno = _done_op = linger

class Dropped:  # made by the daemon thread: free-threaded, its maker's thread finalizes it
    __del__ = linger

class Unpickled:
    def __reduce__(self):
        return linger, ()

def file_queue():
    return desist.FileQueue(tempfile.mkdtemp() + "/queue")

def cancelled():
    source = desist.CancelSource()
    source.cancel()
    return source.token

def catch_again_and_again():
    with desist.move_on_after(0):
        while True:
            try:
                desist.sleep(1)
            except desist.Cancelled:
                pass

def spin():
    while True:
        pass

inside = threading.Event()
threading.excepthook = lambda _: None  # work that is killed at exit
builtins.last_object = LastObject()
FAST = desist.StopPolicy(cooperative=0, at_wait=0, async_exc=0.01, trace=0.01)
"""

CASES = {
    # Calls.
    "the body of a thread": "desist.Thread(target=linger, daemon=True).start()",
    "a simulation": "start(lambda: run(linger))",
    "an action of a barrier": "start(desist.Barrier(1, linger).wait)",
    "a predicate": """
def body():
    with (condition := desist.Condition()):
        condition.wait_for(linger)
start(body)""",
    "the truth of a predicate's value": """
def body():
    with (condition := desist.Condition()):
        condition.wait_for(Lingers)
start(body)""",
    "a repair": """
lock = desist.Lock()
def hold():
    with lock:
        held.set()
        spin()
held = threading.Event()
holder = desist.Thread(target=hold)
holder.start()
held.wait()
holder.kill(policy=desist.StopPolicy(cooperative=0, at_wait=0, async_exc=9, defer=0))
start(lambda: lock.repair(linger))""",
    "a rollback": """
def body():
    with desist.Guarded(1, rollback=linger).lock():
        pass
start(body)""",
    "a masked call": "start(lambda: desist._core.call_masked(linger))",
    "a call with a deadline": "start(lambda: desist.deadline(100)(linger)())",
    "a task of a group": """
def body():
    with desist.TaskGroup(policy=FAST) as group:
        group.start_soon(linger)
start(body)""",
    # Callbacks.
    "a callback of the cancelling thread": """
source = desist.CancelSource()
registration = source.token.on_cancel(linger)
start(source.cancel)""",
    "a callback of a deadline": """
def callback(_):
    if threading.current_thread() is not threading.main_thread():
        linger()
while not inside.is_set():  # a deadline that has passed before the registration runs it here
    source = desist.CancelSource(timeout=0.01)
    registration = source.token.on_cancel(callback)
    inside.wait(0.1)""",
    "an unraisable hook": """
sys.unraisablehook = linger
source = desist.CancelSource()
registration = source.token.on_cancel(lambda _: 1 / 0)
start(source.cancel)""",
    "a hook for warnings": """
warnings.simplefilter("always")
warnings.showwarning = linger
start(catch_again_and_again)""",
    # Work.
    "a handler": "pool = desist.WorkerPool(linger, policy=FAST); pool.submit(1)",
    "an event": """
def listen(event):
    if event.kind == "started":  # those before are told to the thread that submits
        linger()
pool = desist.WorkerPool(lambda _: 1, on_event=listen, policy=FAST)
pool.submit(1)""",
    "a callback of a future": """
pool = desist.WorkerPool(lambda _: go_on.wait(), policy=FAST)
go_on = threading.Event()
pool.submit(1).add_done_callback(linger)
go_on.set()""",
    "an engine": """
from desist.engines import Engine, EngineQueue
class Network(Engine):
    lease_timeout = 30
    put = lease = ack = nack = reject = extend = counts = linger
start(EngineQueue(Network()).lease)""",
    "pickling": "queue = file_queue(); start(lambda: queue.put(Lingers()))",
    "unpickling": "queue = file_queue(); queue.put(Unpickled()); start(queue.lease)",
    "a comparison of a priority queue": """
queue = desist.PriorityQueue()
queue.put(Lingers())
start(lambda: queue.put(Lingers()))""",
    "an operation of another object": "start(lambda: desist.wait_any(Lingers()))",
    # Arguments.
    "a number of seconds": "start(lambda: desist.sleep(Lingers()))",
    "a count": "start(lambda: desist.Semaphore(Lingers()))",
    "a truth value": "start(lambda: desist.Lock().acquire(Lingers()))",
    "a descriptor": "start(lambda: desist.wait_readable(Lingers()))",
    # Drops.
    "an item of a dropped queue": """
def body():
    queue = desist.Queue()
    queue.put(Dropped())
    del queue
start(body)""",
    "an item of a queue that only this thread drops": """
def body():
    queues = [desist.Queue()]
    queues[0].put(Dropped())
    queues.clear()
start(body)""",
    "a replaced value": """
def body():
    with desist.Guarded(Dropped()).lock() as held:
        held.value = 1
start(body)""",
    "a callback that is closed": """
def body():
    source = desist.CancelSource()
    callback = type("Callback", (Dropped,), {"__call__": print})
    source.token.on_cancel(callback()).close()
start(body)""",
    "an exception of a task": """
def fail():
    dropped = Dropped()
    raise SystemExit
desist.Thread(target=fail, daemon=True).start()""",
    "an item that is done": """
def body():
    queue = desist.LeaseQueue()
    queue.put(Dropped())
    queue.lease().ack()
start(body)""",
    "a weak reference to an item": """
import weakref
class Item: pass
def body():
    item = Item()
    reference = weakref.ref(item, linger)
    queue = desist.Queue()
    queue.put(item)
    del item
    references.append(reference)
    del queue
references = []
start(body)""",
    "a collection": """
import gc
def callback(*_):
    if threading.current_thread() is not threading.main_thread():
        linger()
gc.callbacks.append(callback)
def body():
    gc.set_threshold(1)
    queues = [desist.Queue() for _ in range(100_000)]  # so many for a free-threaded collector
start(body)""",
    # Reports.
    "the stack of a thread that is killed": """
import traceback
def kill_one():
    thread = desist.Thread(target=time.sleep, args=(1000,), daemon=True)
    thread.start()
    thread.kill(policy=FAST)
def kill_until_one_slept():
    while not inside.is_set():
        kill_one()
traceback.format_stack = linger
start(kill_until_one_slept)""",
    "the stack of a report": """
thread = desist.Thread(target=spin, daemon=True)
thread.start()
report = thread.kill(policy=desist.StopPolicy(cooperative=0, at_wait=0))
import linecache
linecache.checkcache = linger
start(lambda: report.stack)""",
    "the name of a thread": """
class Named(threading.Thread):
    started = False  # from 3.14 on, start() waits until the thread has asked for its name
    _name = property(lambda self: linger() if self.started else "named", lambda self, name: None)
    def run(self):
        self.started = True
        desist.CancelSource().cancel()
Named(daemon=True).start()""",
}


@pytest.mark.parametrize("case", CASES)
def test_i44_no_python_code_of_a_daemon_thread_aborts_the_process(case: str) -> None:
    script = SETTING + CASES[case] + "\nassert inside.wait(10)"
    line = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
