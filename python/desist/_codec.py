"""How items become bytes, and failures text, in queues that are not in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desist._core import CancelCause

if TYPE_CHECKING:
    from collections.abc import Callable

_PROTOCOL = 5  # what the oldest Python that we run on understands
_LONGEST = 8_000
"""Characters of a failure's text: its end says what it was."""


class Codec(NamedTuple):
    """Both ways."""

    encode: Callable[[Any], bytes]
    """TypeError: it cannot."""
    decode: Callable[[bytes], Any]
    """Raises whatever it raises."""


def codec(name: str) -> Codec:
    """ValueError: there is none of that name."""
    if name == "pickle":
        import pickle

        def to_pickle(item: object) -> bytes:
            return pickle.dumps(item, _PROTOCOL)

        return Codec(_saying_what_to_do(to_pickle, name), pickle.loads)
    if name == "json":
        import json

        def to_bytes(item: object) -> bytes:
            return json.dumps(
                item, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            ).encode()

        return Codec(_saying_what_to_do(to_bytes, name), json.loads)
    message = f"codec must be 'pickle' or 'json', not {name!r}"
    raise ValueError(message)


def _saying_what_to_do(dumps: Callable[[Any], bytes], name: str) -> Callable[[Any], bytes]:
    def encode(item: object) -> bytes:
        try:
            return dumps(item)
        except Exception as error:
            message = (
                f"{type(item).__name__} cannot be put into this queue, for {name} refuses it "
                f"({error}): put what the work is about, such as a path or an id, and make the "
                f"rest in the handler"
            )
            raise TypeError(message) from error

    return encode


def describe(failure: BaseException | CancelCause) -> str:
    """What went wrong, for people."""
    if isinstance(failure, CancelCause):
        return f"{failure.kind.value}: {failure.reason}" if failure.reason else failure.kind.value
    import traceback

    return "".join(traceback.format_exception(failure))[-_LONGEST:].rstrip()
