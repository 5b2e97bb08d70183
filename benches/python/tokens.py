"""Polling a token, and cancelling a source."""

from collections.abc import Iterator

from measure import each, in_asyncio, in_block, in_trio, plain
from table import Row

GET_IDENT = plain("get_ident()", "from threading import get_ident")


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    yield polling()
    yield checking()
    yield cancelling()
    yield with_token()


def polling() -> Row:
    """Poll a token that is not cancelled."""
    ident, ours, event, cantok, trio = each(
        [
            GET_IDENT,
            plain("token.cancelled", "import desist; token = desist.CancelSource().token"),
            plain("event.is_set()", "import threading; event = threading.Event()"),
            plain("token.cancelled", "import cantok; token = cantok.SimpleToken()"),
            in_trio("scope.cancel_called", "import trio; scope = trio.CancelScope()"),
        ]
    )
    peers = {"Event.is_set()": event, "trio": trio, "cantok": cantok}
    return Row("token.cancelled", "ns", ours, ("get_ident()", ident), 0.6, peers)


def checking() -> Row:
    """A checkpoint outside of cancelled scopes."""
    ident, outside, inside = each(
        [
            GET_IDENT,
            plain("checkpoint()", "from desist import checkpoint"),
            in_block(plain("checkpoint()", "from desist import checkpoint")),
        ]
    )
    peers = {"desist, in a block with a deadline": inside}
    return Row("checkpoint(), in no block", "ns", outside, ("get_ident()", ident), peers=peers)


def cancelling() -> Row:
    """Make a source, cancel it, and drop it."""
    ident, ours, event, cantok, future, trio, aiologic = each(
        [
            GET_IDENT,
            plain("CancelSource().cancel()", "from desist import CancelSource"),
            plain("Event().set()", "from threading import Event"),
            plain("SimpleToken().cancel()", "from cantok import SimpleToken"),
            in_asyncio(
                "create().cancel()",
                "import asyncio; create = asyncio.get_running_loop().create_future",
            ),
            in_trio("trio.CancelScope().cancel()"),
            plain("Event().set()", "from aiologic import Event"),
        ]
    )
    peers = {
        "asyncio.Future": future,
        "aiologic": aiologic,
        "cantok": cantok,
        "Event": event,
        "trio": trio,
    }
    return Row("CancelSource(), cancel()", "ns", ours, ("get_ident()", ident), 10, peers)


def with_token() -> Row:
    """The same, with a token made in between."""
    ident, ours = each(
        [
            GET_IDENT,
            plain("s = CancelSource(); t = s.token; s.cancel()", "from desist import CancelSource"),
        ]
    )
    return Row("CancelSource(), .token, cancel()", "ns", ours, ("get_ident()", ident))
