"""A Redis as an operator is told of it. It is here, without redis-py, for whoever only reads it."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

NO_EVICTION: Final = "noeviction"
"""The only `maxmemory-policy` under which keys and counters stay."""
OLDEST: Final = (6, 2)
"""The version of Redis that is needed."""
_VERSION: Final = re.compile(r"(\d+)\.(\d+)")


class RedisSeen(Struct, frozen=True, kw_only=True):
    """One Redis as it was just now."""

    where: str
    """Its URL, without what is secret in it."""
    version: str
    """Empty: it does not tell us."""
    policy: str
    """Its `maxmemory-policy`; empty: it does not tell us."""
    persistent: bool | None
    """Whether it keeps an append-only file; None: it does not tell us."""
    milliseconds: float
    """Of one question and its answer, the fastest of some."""
    clock_ahead: float
    """Seconds that its clock is ahead of ours, as far as the answer's way lets it be known."""
    denied: tuple[str, ...]
    """Commands, each with its key, that a gateway needs and its user may not use."""

    @property
    def evicts(self) -> bool:
        """It throws keys away when its memory is full."""
        return self.policy not in ("", NO_EVICTION)

    @property
    def is_old(self) -> bool:
        """It is a version that cannot be used."""
        found = _VERSION.match(self.version)
        return found is not None and (int(found[1]), int(found[2])) < OLDEST
