"""The parameters of a queue's URL that are desist's own.

The rest of the URL is the client library's: it is passed on as it was written, so that hosts,
sockets, quoting and parameters mean what they mean to libpq or redis-py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Mapping


def scheme_of(url: str) -> str:
    """Return the text in front of ``://``."""
    return url.partition("://")[0]


def take_parameters(url: str, *names: str) -> tuple[str, dict[str, str]]:
    """Take the parameters with these names out of a URL. Returns the rest of it, and them.

    Raises:
        ValueError: one of them is empty, or is there twice.
    """
    address, mark, query = _at_the_query(url)
    taken: dict[str, str] = {}
    kept: list[str] = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if unquote(name) not in names:
            kept.append(part)
            continue
        if not value or name in taken:
            raise ValueError(f"the parameter {name} of a queue's URL is given once, with a value")
        taken[unquote(name)] = unquote(value)
    rest = "&".join(kept)
    return address + mark * bool(rest) + rest, taken


def _at_the_query(url: str) -> tuple[str, str, str]:
    # As libpq reads it: a user's name and password may contain a question mark.
    begin = len(scheme_of(url)) + len("://")
    user, at, _ = url[begin:].partition("/")[0].rpartition("@")
    begin += len(user) + len(at)
    address, mark, query = url[begin:].partition("?")
    return url[:begin] + address, mark, query


def lease_timeout_of(parameters: Mapping[str, str]) -> float:
    """Return the lease_timeout among the parameters of a URL, or the usual one."""
    given = parameters.get("lease_timeout", "30")
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"lease_timeout must be a number of seconds, not {given!r}") from None


def check_lease_timeout(seconds: float) -> None:
    """Raise ValueError for a time that no lease can last."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"lease_timeout must be positive and finite, but is {seconds}")
