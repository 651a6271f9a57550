"""The memory that request bodies take up while they are read, of which no key and no tenant may take all."""

from __future__ import annotations

from collections import Counter
from typing import Final

from gateway.config.table import Bodies
from gateway.core.errors import BodyMemoryFull, TooManyBodies
from gateway.core.types import KeyRecord

KEYS_PART: Final = 4
"""One key's bodies are at most a quarter of all; but one body of the largest size always is."""
TENANTS_PART: Final = 2


class BodyMemory:
    """What a worker's callers are sending at the moment, in bytes."""

    def __init__(self) -> None:
        self._all = 0
        self._of: Counter[tuple[str, str]] = Counter()

    def take(self, key: KeyRecord, size: int, bodies: Bodies) -> None:
        """Count `size` bytes more of a key's; to be given back. Raises `TooManyBodies` and `BodyMemoryFull`."""
        bound, key_of, tenant_of = bodies.being_read, ("key", key.id), ("tenant", key.tenant)
        for whose, part in ((key_of, KEYS_PART), (tenant_of, TENANTS_PART)):
            share = max(bound // part, bodies.request)
            if self._of[whose] + size > share:
                raise TooManyBodies(whose[0], share)
        if self._all + size > bound:
            raise BodyMemoryFull(bound)
        self._all += size
        self._of[key_of] += size
        self._of[tenant_of] += size

    def give_back(self, key: KeyRecord, size: int) -> None:
        """The body was read, or will not be."""
        self._all -= size
        for whose in (("key", key.id), ("tenant", key.tenant)):
            self._of[whose] -= size
            if not self._of[whose]:
                del self._of[whose]
