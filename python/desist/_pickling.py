"""Native objects that belong to one process refuse to be copied and pickled (I45).

Without this, the pickle protocols 0 and 1 write some of them, and only the load fails. A class that
can be made again elsewhere, a policy or a report, has a `__reduce__` of its own and is left alone;
so no class is forgotten that is added later. Subclasses refuse as well, unless they have a
`__reduce__` of their own, and so do objects that contain such an object.
"""

from __future__ import annotations

from desist import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def refuse(self: object) -> NoReturn:
    """For `__reduce__`: raise TypeError with advice."""
    message = (
        f"cannot pickle or copy {type(self).__name__!r} object: it belongs to this process and its "
        "threads; pass the data that the other side needs to make one of its own"
    )
    raise TypeError(message)


for _native in vars(_core).values():
    if isinstance(_native, type) and "__reduce__" not in vars(_native):
        _native.__reduce__ = refuse  # type: ignore[assignment, method-assign]
