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
EXPIRIES = b"'PX', ARGV[at])", b"'PX', math.ceil((moved - now) / 1000) + 1000)"
KEY = "{tl}:test:now"
MICRO = 1_000_000


def timed(script: Script, *, expires: bool = True) -> Script:
    """The script, reading the time from a Redis key instead of the server's clock.

    Redis itself goes by its own clock when it lets keys expire; unless `expires`, none does while the test runs.
    """
    assert script.text.count(CLOCK) == 1, "the script reads the time in another way now: change the test"
    text = script.text.replace(CLOCK, b"redis.call('HMGET', '" + KEY.encode() + b"', 'seconds', 'micros')")
    for spans in () if expires else EXPIRIES:
        text = text.replace(spans, b"'PX', '3600000')")
    assert expires or text.count(b"'PX'") == text.count(b"'PX', '3600000')"), "a key expires in another way"
    return Script(text)


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


def time_scripts(monkeypatch: pytest.MonkeyPatch, *, expires: bool = True) -> None:
    """From here on the store's scripts read the test's time; `expires` as for `timed`."""
    for module, names in ((counters, ("ADMIT", "SETTLE")), (board, ("EXCHANGE", "REPORT"))):
        for name in names:
            monkeypatch.setattr(module, name, timed(getattr(module, name), expires=expires))
    monkeypatch.setattr(counters, "RENEW_SECONDS", 3600.0)  # the test says when


class TimedStore(RedisStore):
    """A Redis store whose own look at the clock is the test's too."""

    def __init__(self, url: str, clock: FixedClock, boot: str = "") -> None:
        super().__init__(url, timeout=30.0, boot=boot)
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
