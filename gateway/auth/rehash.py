"""Moving keys to the newest pepper when they are used: only then is their secret at hand."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Generic, TypeVar

import msgspec

from gateway.auth.cache import Cache
from gateway.auth.pepper import Peppers
from gateway.core.clock import Clock
from gateway.core.types import AdminKey, Audit, KeyRecord, Secret
from gateway.store import KINDS, Conflict, Records, StoreDown

log = logging.getLogger("trunkline.auth")

K = TypeVar("K", KeyRecord, AdminKey)
MAX_WAITING: Final = 1000
"""Keys that wait to be re-hashed; more of them are left for their next call."""


class Rehash(Generic[K]):
    """Writes keys anew, one after another, in a task of its own: a client must neither wait for it nor cancel it.

    Each key that was tried is outdated in `cache`.
    """

    def __init__(self, store: Records, peppers: Peppers, clock: Clock, cache: Cache[K]) -> None:
        self._store, self._peppers, self._clock = store, peppers, clock
        self._cache: Cache[K] = cache
        self._queue: asyncio.Queue[tuple[K, Secret, str]] = asyncio.Queue(MAX_WAITING)
        self._known: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start to work."""
        self._task = asyncio.create_task(self._run(), name="rehash")

    async def close(self) -> None:
        """Stop; what still waits is left for the keys' next calls."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def offer(self, record: K, used: Secret, secret: str) -> None:
        """Re-hash the secret that was `used`, unless that is being done or there is too much to do."""
        if record.id not in self._known and not self._queue.full():
            self._known.add(record.id)
            self._queue.put_nowait((record, used, secret))

    async def _run(self) -> None:
        while True:
            record, used, secret = await self._queue.get()
            try:
                await self._write(record, used, secret)
            except (Conflict, StoreDown):
                pass  # somebody was faster, or the store is down: the next call with the key tries again
            except Exception as error:
                log.error("key %s cannot be hashed under the newest pepper: %r", record.id, error)
                continue  # and is not tried again by this process
            self._known.discard(record.id)
            self._cache.outdate(record.id)

    async def _write(self, record: K, used: Secret, secret: str) -> None:
        kind = KINDS[type(record)]
        renewed = self._peppers.hash(secret, used.not_after)
        changed = msgspec.structs.replace(
            record,
            version=record.version + 1,
            secrets=tuple(renewed if stored is used else stored for stored in record.secrets),
        )
        entry = Audit(time=self._clock.now(), actor="gateway", action=f"{kind}.rehash", subject=f"{kind}:{record.id}")
        await self._store.put(changed, entry)
