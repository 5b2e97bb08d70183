from __future__ import annotations

import cpython
import desist

EXCLUDED = {
    f"Py{name}Test": f"as C{name}Test: desist has one queue, and not two implementations"
    for name in ("FailingQueue", "LifoQueue", "PriorityQueue", "Queue", "SimpleQueue")
}
cases = cpython.adopt(cpython.queue_tests(), EXCLUDED, queue=cpython.QUEUE)
globals().update(cases)


def test_the_tests_use_desist() -> None:
    for name in ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"):
        case = cases[f"C{name}Test"]("test_basic")
        case.setUp()
        assert case.type2test is getattr(desist, name)
