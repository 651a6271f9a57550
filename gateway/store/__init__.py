"""Where keys and limits live: the `Store` protocol, and how a store is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from gateway.core.types import Ask, KeyRecord, Verdict

LEASE_SECONDS = 15.0
"""How long a slot outlives a gateway that dies; leases are renewed three times in that time."""
RENEW_SECONDS = 5.0


class StoreDown(Exception):
    """The store did not answer in time; nothing is known about what was asked."""


class KeyConflict(Exception):
    """Somebody else changed the key since it was read."""


class Store(Protocol):
    """Key records and limit counters. Every method raises `StoreDown` when the store cannot be asked."""

    async def open(self) -> None:
        """Start background work; does not wait for the store to be up."""

    async def close(self) -> None:
        """Hand back what is still to be handed back, and stop."""

    async def ping(self) -> None:
        """Return once the store answers."""

    async def admit(self, ask: Ask) -> Verdict:
        """Check all dimensions, then charge all or none, in one step that no other admission can interleave."""

    def release(self, ask: Ask) -> None:
        """Give the leases of a granted ask back, soon. Once is enough; twice does no harm."""

    async def key(self, key_id: str) -> KeyRecord | None:
        """The record as it stands."""

    async def keys(self) -> list[KeyRecord]:
        """All records, oldest first."""

    async def put_key(self, record: KeyRecord) -> None:
        """Write a record whose version is one above the stored one (1: a new key); raises `KeyConflict` otherwise."""


def open_store(redis_url: str | None, state: Path, timeout: float = 0.25) -> Store:
    """The store these settings name: Redis, or this process with its keys in a file."""
    if redis_url is None:
        from gateway.store.memory import MemoryStore

        return MemoryStore(state)
    from gateway.store.redis import RedisStore

    return RedisStore(redis_url, timeout=timeout)
