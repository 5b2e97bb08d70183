"""What desist finds around it: the interpreter that imports it, and libraries that patch threads.

Importing this module, before the extension, refuses any interpreter but the main one: the
extension's classes and its state belong to one interpreter, and must not be made by another.

`tell_if_patched()` warns, once, of a process in which gevent or eventlet has replaced the blocking
functions of the standard library. It is called at import and, because a process may be patched
later, by waits when a module of these libraries is there (src/python/binding/surroundings.rs).
"""

from __future__ import annotations

import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

SUBINTERPRETER = (
    "desist can only be imported in the main interpreter, not in a subinterpreter: its threads, "
    "locks and exceptions belong to one interpreter. Use it in the main interpreter; with "
    "mod_wsgi, set `WSGIApplicationGroup %{GLOBAL}`"
)

_PATCHED = (
    "{library} has patched this process, and desist waits in the operating system, not in the "
    "hub of {library}: while a greenlet waits with desist, all greenlets of its thread stand "
    "still. Run such code on a real thread: {instead}"
)

_told = False
"""Whether the warning was given."""


def _is_main_interpreter() -> bool:
    if sys.version_info >= (3, 12):
        from _thread import _is_main_interpreter  # type: ignore[attr-defined,unused-ignore]

        return _is_main_interpreter()
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # left out of this build: then the extension itself refuses
        return True
    return bool(interpreters.get_current() == interpreters.get_main())


def tell_if_patched() -> None:
    """Warn, once, if gevent or eventlet has patched this process."""
    global _told  # noqa: PLW0603 (once for the process)
    gevent, eventlet = map(sys.modules.get, ("gevent.monkey", "eventlet.patcher"))
    if _told:
        return
    if _is_any(gevent, "is_module_patched", ("threading", "time", "socket")):
        message = _PATCHED.format(
            library="gevent", instead="`gevent.get_hub().threadpool.apply(function)`"
        )
    elif _is_any(eventlet, "is_monkey_patched", ("thread", "time", "socket")):
        message = _PATCHED.format(library="eventlet", instead="`eventlet.tpool.execute(function)`")
    else:
        return
    _told = True
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _is_any(library: ModuleType | None, asked: str, names: tuple[str, ...]) -> bool:
    # It may be half imported.
    is_patched = getattr(library, asked, None)
    return is_patched is not None and any(map(is_patched, names))


if not _is_main_interpreter():
    raise ImportError(SUBINTERPRETER)
tell_if_patched()
