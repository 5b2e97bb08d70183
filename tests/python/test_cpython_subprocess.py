"""CPython's own tests of subprocess.run(), with desist.run() in its place."""

from __future__ import annotations

import cpython
import desist

EXCLUDED = {
    "RunFuncTestCase.test__use_vfork": "changes the private subprocess._USE_VFORK, up to 3.10",
}
module = cpython.subprocess_tests()
# The other cases of the module are about Popen.
RunFuncTestCase = cpython.adopt(module, EXCLUDED)["RunFuncTestCase"]


def test_the_tests_use_desist() -> None:
    assert module.subprocess.run is desist.run
