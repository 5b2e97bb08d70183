"""CPython's own tests of `subprocess`, with desist.subprocess in its place."""

from __future__ import annotations

import cpython
import desist

_NO_KILL = "mocks the private Popen._wait; desist stops the child of a call that is interrupted"
EXCLUDED = {
    "MiscTests.test__all__": "compares the names of the module, which is an overlay here",
    "MiscTests.test_call_keyboardinterrupt_no_kill": _NO_KILL,
    "MiscTests.test_context_manager_keyboardinterrupt_no_kill": _NO_KILL,
    "MiscTests.test_run_keyboardinterrupt_no_kill": _NO_KILL,
    "POSIXProcessTestCase.test_communicate_BrokenPipeError_stdin_write": (
        "mocks stdin.write(); desist writes to the descriptor"
    ),
    "RunFuncTestCase.test__use_vfork": "changes the private subprocess._USE_VFORK, up to 3.10",
}
module = cpython.subprocess_tests()
cases = cpython.adopt(module, EXCLUDED)
# ProcessTestCase again, with another selector; desist uses none.
del cases["ProcessTestCaseNoPoll"]
globals().update(cases)


def test_the_tests_use_desist() -> None:
    assert module.subprocess.run is desist.subprocess.run
    assert module.subprocess.Popen is desist.subprocess.Popen
