"""Codecs: how items become bytes, and failures text, in queues that are not in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desist._core import CancelCause

if TYPE_CHECKING:
    from collections.abc import Callable

_PROTOCOL = 5  # the newest one that Python 3.10 reads
_LONGEST = 8_000
"""Characters that are kept of a failure's text: the end, which names the exception."""


class Codec(NamedTuple):
    """A pair of functions between items and bytes."""

    encode: Callable[[Any], bytes]
    """Raises TypeError, with advice, for an item that has no such bytes."""
    decode: Callable[[bytes], Any]
    """Raises the decoder's exception for bytes that it cannot read."""


def codec(name: str) -> Codec:
    """Return the codec of that name.

    Raises:
        ValueError: there is no such codec.
    """
    if name == "pickle":
        import pickle

        def to_pickle(item: object) -> bytes:
            return pickle.dumps(item, _PROTOCOL)

        return Codec(_with_advice(to_pickle, name), pickle.loads)
    if name == "json":
        import json

        def to_bytes(item: object) -> bytes:
            return json.dumps(
                item, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            ).encode()

        return Codec(_with_advice(to_bytes, name), json.loads)
    message = f"codec must be 'pickle' or 'json', not {name!r}"
    raise ValueError(message)


def _with_advice(dumps: Callable[[Any], bytes], name: str) -> Callable[[Any], bytes]:
    def encode(item: object) -> bytes:
        try:
            return dumps(item)
        except Exception as error:
            message = (
                f"{type(item).__name__} cannot be put into this queue, because {name} refuses it "
                f"({error}): put a path or an id, and create the object in the handler"
            )
            raise TypeError(message) from error

    return encode


def dead_item(
    decode: Callable[[bytes], Any], body: bytes, failures: list[str]
) -> tuple[Any, list[str]]:
    """Decode a dead item, for a list of the dead.

    If it cannot be decoded, which may be why it is dead, its bytes stand for it, and the decoder's
    exception is one more failure: the other items of the list can still be looked at.
    """
    try:
        return decode(body), failures
    except Exception as failure:  # noqa: BLE001 (whatever the item's class does)
        return body, [*failures, f"its bytes cannot be decoded here: {describe(failure)}"]


def describe(failure: BaseException | CancelCause) -> str:
    """Format a failure as text for people."""
    if isinstance(failure, CancelCause):
        return f"{failure.kind.value}: {failure.reason}" if failure.reason else failure.kind.value
    import traceback

    return "".join(traceback.format_exception(failure))[-_LONGEST:].rstrip()
