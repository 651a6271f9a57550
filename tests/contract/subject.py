"""A store under test, with time that passes: a clock's that the test moves, or real time."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from contract.timed import RedisClock, TimedStore, time_scripts
from contract.wanted import Wanted, asking, changed
from harness.clock import FixedClock
from harness.redis_server import RedisServer
from redis import Redis

from gateway.core.types import Ask, KeyRecord, Period, Secret, Tenant, Verdict
from gateway.store import LEASE_SECONDS, Store
from gateway.store.local import LocalStore

MICRO = 1_000_000


class Subject:
    """Makes keys, dimensions and asks of names that no other test uses."""

    def __init__(self, store: Store, clock: FixedClock | None) -> None:
        self.store, self.clock = store, clock
        self.name = uuid.uuid4().hex[:12]

    async def renew(self) -> None:
        """What a living worker's store does every few seconds for its calls."""
        if isinstance(self.store, TimedStore):
            await self.store.renew()

    async def sleep(self, seconds: float) -> None:
        if self.clock is None:
            await asyncio.sleep(max(0.0, seconds))
        else:
            self.clock.advance(seconds)

    def time(self) -> float:
        return time.monotonic() if self.clock is None else self.clock.time

    async def key(self, version: int = 1, name: str | None = None) -> KeyRecord:
        record = KeyRecord(
            id=name or self.name, name="test", created=time.time(), version=version, secrets=(Secret(digest="00"),)
        )
        await self.store.records.put(record)
        return record

    async def tenant(self, version: int = 1) -> Tenant:
        record = Tenant(id=self.name, created=time.time(), version=version)
        await self.store.records.put(record)
        return record

    def rate(self, limit: int, window: float = 60.0, name: str = "rpm", amount: int = 1, scope: str = "key") -> Wanted:
        unit = {"rpm": "requests", "itpm": "input", "otpm": "output"}.get(name, "tokens")
        key = f"rate:{scope}:{self.name}:{name}"
        return Wanted(name, "rate", key, limit, window, scope, unit, amount=amount)

    def tokens(self, limit: int, amount: int, window: float = 60.0, name: str = "tpm", scope: str = "key") -> Wanted:
        return self.rate(limit, window, name, amount, scope)

    def lease(self, limit: int, name: str = "", scope: str = "key") -> Wanted:
        key = f"lease:{scope}:{self.name}{name}"
        return Wanted("concurrency", "lease", key, limit, LEASE_SECONDS, scope, "calls")

    def budget(
        self, limit: int, amount: int = 1, period: Period = "day", unit: str = "tokens", scope: str = "key"
    ) -> Wanted:
        key = f"budget:{scope}:{self.name}:{period}:{unit}"
        return Wanted("budget", "budget", key, limit, 60.0, scope, unit, period, "closed", amount)

    def ask(
        self,
        *dimensions: Wanted,
        version: int = 1,
        call: str | None = None,
        records: Sequence[tuple[str, int]] | None = None,
    ) -> Ask:
        decided = ((f"key:{self.name}", version),) if records is None else tuple(records)
        return asking(call or uuid.uuid4().hex, decided, *dimensions)

    async def admit(self, *dimensions: Wanted) -> Verdict:
        """The verdict on a new call."""
        return await self.store.limits.admit(self.ask(*dimensions))

    async def granted(self, *dimensions: Wanted) -> tuple[Ask, Verdict]:
        """A new call, which must be let in."""
        return await self.granted_with(1, *dimensions)

    async def granted_with(self, version: int, *dimensions: Wanted) -> tuple[Ask, Verdict]:
        """As `granted`, decided on another version of the key."""
        ask = self.ask(*dimensions, version=version)
        verdict = await self.store.limits.admit(ask)
        assert verdict.denied is None and not verdict.stale, verdict
        return ask, verdict

    async def settle(self, granted: tuple[Ask, Verdict], *used: int) -> None:
        """End a call; what follows finds it ended."""
        ask, verdict = granted
        known = self.store.limits.settle(ask, verdict.at, used)
        if known is not None:
            await known  # a Redis that has yet to learn the script does it later than what was sent after it
        await self.store.ping()

    async def grants(self, *dimensions: Wanted, times: int) -> int:
        """How many of so many asks, one after the other, are granted."""
        verdicts = [await self.admit(*dimensions) for _ in range(times)]
        return sum(verdict.denied is None and not verdict.stale for verdict in verdicts)

    async def left(self, dimension: Wanted) -> int:
        """Units that a dimension has left, found without using any."""
        if dimension.kind == "lease":
            taken = self.ask(dimension)
            verdict = await self.store.limits.admit(taken)
            if verdict.denied is not None:
                return 0
            await self.settle((taken, verdict), 0)
            return verdict.standings[0].remaining + 1
        probe = changed(dimension, amount=0)
        if dimension.kind == "budget":
            taken = self.ask(probe)
            verdict = await self.store.limits.admit(taken)
            await self.settle((taken, verdict), 0)
            return verdict.standings[0].remaining
        return (await self.admit(probe)).standings[0].remaining


@asynccontextmanager
async def in_memory(folder: Path) -> AsyncIterator[Subject]:
    """The store of one process, on the test's clock."""
    clock = FixedClock()
    made = Subject(LocalStore(folder / "keys.json", clock.now), clock)
    await made.store.open()
    try:
        yield made
    finally:
        await made.store.close()


@asynccontextmanager
async def in_redis(server: RedisServer, *, expires: bool = False) -> AsyncIterator[Subject]:
    """The shared store, on the test's clock. Unless `expires`, what stands still there does not expire in real time."""
    with pytest.MonkeyPatch.context() as patch, Redis.from_url(server.url) as client:
        time_scripts(patch, expires=expires)
        clock = RedisClock(client)
        made = Subject(TimedStore(server.url, clock), clock)
        await made.store.open()
        try:
            yield made
        finally:
            await made.store.close()
