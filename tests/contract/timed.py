"""The Redis store on a clock that a test moves: its scripts with the one place replaced where they read the time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness.clock import FixedClock
from redis import Redis

from gateway.store.redis import board, counters
from gateway.store.redis.connection import Script
from gateway.store.redis.store import RedisStore

CLOCK = b"redis.call('TIME')"
KEY = "{tl}:test:now"
MICRO = 1_000_000


def timed(script: Script) -> Script:
    """The script, reading the time from a Redis key instead of the server's clock."""
    assert script.text.count(CLOCK) == 1, "the script reads the time in another way now: change the test"
    return Script(script.text.replace(CLOCK, b"redis.call('HMGET', '" + KEY.encode() + b"', 'seconds', 'micros')"))


class RedisClock(FixedClock):
    """A clock that scripts made by `timed` see too."""

    def __init__(self, client: Redis, now: float = 1_800_000_000.0) -> None:
        super().__init__(now)
        self._client = client
        self.set(now)

    def set(self, now: float) -> None:
        self.time = now
        seconds, micros = divmod(int(now * MICRO), MICRO)
        self._client.hset(KEY, mapping={"seconds": seconds, "micros": micros})

    def advance(self, seconds: float) -> None:
        self.set(self.time + seconds)


def time_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the store's scripts read the test's time."""
    for module, names in ((counters, ("ADMIT", "SETTLE")), (board, ("EXCHANGE", "REPORT"))):
        for name in names:
            monkeypatch.setattr(module, name, timed(getattr(module, name)))
    monkeypatch.setattr(counters, "RENEW_SECONDS", 3600.0)  # the test says when


class TimedStore(RedisStore):
    """A Redis store whose own look at the clock is the test's too."""

    def __init__(self, url: str, clock: FixedClock, boot: str = "") -> None:
        super().__init__(url, timeout=5.0, boot=boot)
        self._url, self._clock = url, clock
        call = self._pipe.call

        async def answer(*parts: Any) -> Any:
            if parts != ("TIME",):
                return await call(*parts)
            seconds, micros = divmod(int(clock.now() * MICRO), MICRO)
            return [b"%d" % seconds, b"%d" % micros]

        self._pipe.call = answer  # type: ignore[method-assign]

    async def renew(self) -> None:
        """What the store does every few seconds: tell Redis which calls live."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counters, "RENEW_SECONDS", 0.0)
            renewing = asyncio.create_task(self.limits.renew())
            await self.ping()
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        await self.ping()

    async def successor(self) -> TimedStore:
        """End as a killed process does, with nothing settled and nothing renewed any more; another one begins."""
        self.limits._held.clear()
        await self.close()
        store = TimedStore(self._url, self._clock)
        await store.open()
        return store
