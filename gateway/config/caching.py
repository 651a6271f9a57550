"""The part of the routing table that says which answers are kept, and given again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from gateway.config.limits import Part
from gateway.config.units import Seconds, Size

if TYPE_CHECKING:
    from gateway.config.table import Table

MOST_LARGEST: Final = 16 * 1024**2
"""Bytes of one answer; a worker holds at most four times as many for the cache."""
MOST_WAIT: Final = 1.0
"""Seconds; whoever waits longer for the cache is better off without it."""
LEAST_TTL: Final = 1.0
MOST_TTL: Final = 30 * 86400.0


class ResponseCacheSpec(Part, frozen=True, kw_only=True):
    """Answers are kept, and given again to calls that ask for exactly the same; it needs `TRUNKLINE_CACHE_URL`."""

    calls: Literal["deterministic", "asked"] = "deterministic"
    """Which calls take part: those whose answer is the same each time (`temperature: 0`, a `seed`, embeddings, scores)
    and those that ask for it by the header `x-trunkline-cache`; or the latter alone."""
    ttl: Seconds = 3600.0
    """How long an answer is kept, from `1s` to `30d`."""
    largest: Size = 1024**2
    """The largest answer that is kept, with all events of a stream; at most 16MiB."""
    shared: bool = False
    """All tenants are given the same answers; default: each tenant those to its own calls."""
    wait: Seconds = 0.05
    """How long a call waits for the cache at most, before it goes to a target; at most `1s`."""


def without_cache(table: Table, cache_url: str | None) -> list[str]:
    """Sentences about routes whose answers are to be kept, though there is nowhere to keep them."""
    if cache_url:
        return []
    routes = (name for name, route in table.routes.items() if route.response_cache is not None)
    return [f"route {name!r} has 'response_cache', which needs TRUNKLINE_CACHE_URL: a Redis for it" for name in routes]
