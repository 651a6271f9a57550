"""What gateway workers tell each other and the operator of their targets, in Redis and by its clock."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.store import DEAD_SECONDS, FRESH_SECONDS, StoreDown
from gateway.store.redis.connection import Pipe, script

EMPTY_MS: Final = 60_000
"""A board that nobody writes goes after so long."""
STEP: Final = 50
"""Boards in one script call: some 20 us each with eight gateways, and admissions wait meanwhile."""
MICRO: Final = 1_000_000

TAG = "{tl}:"
_REPORTS, _REPORTED = TAG + "reports", TAG + "reported"
EXCHANGE, REPORT = script("exchange"), script("report")


class RedisBoard:
    """Raises `StoreDown` when Redis does not answer. Whoever has no `boot` id only reads."""

    def __init__(self, pipe: Pipe, boot: str) -> None:
        self._pipe, self._boot = pipe, boot
        self._written: set[str] = set()
        self._reported = False

    async def exchange(self, mine: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        words = list(mine.items()) if self._boot else [(name, b"") for name in mine]
        steps = [words[start : start + STEP] for start in range(0, len(words), STEP)]
        answers = await asyncio.gather(*(asyncio.shield(self._step(step)) for step in steps))
        return {
            name: {
                boot.decode(): (word, age / MICRO)
                for boot, age, word in zip(others[::3], others[1::3], others[2::3], strict=True)
            }
            for name, others in zip(mine, (board for boards in answers for board in boards), strict=True)
        }

    async def report(self, word: bytes) -> None:
        if self._boot:
            self._reported = True
            kept = int(DEAD_SECONDS * MICRO)
            await asyncio.shield(self._pipe.run(REPORT, [_REPORTS, _REPORTED], self._boot, word, kept))

    async def reports(self) -> dict[str, tuple[bytes, float]]:
        (seconds, micros), stamps, words = await asyncio.gather(
            self._pipe.call("TIME"),
            self._pipe.call("ZRANGE", _REPORTED, 0, -1, "WITHSCORES"),
            self._pipe.call("HGETALL", _REPORTS),
        )
        now = int(seconds) * MICRO + int(micros)
        told = dict(zip(words[::2], words[1::2], strict=True))
        ages = {boot: (now - float(at)) / MICRO for boot, at in zip(stamps[::2], stamps[1::2], strict=True)}
        return {
            boot.decode(): (told[boot], max(0.0, age))
            for boot, age in ages.items()
            if boot in told and age <= DEAD_SECONDS
        }

    def _step(self, words: Sequence[tuple[str, bytes]]) -> asyncio.Future[Any]:
        keys = [_board(name) for name, _ in words]
        self._written.update(key for key, (_, word) in zip(keys, words, strict=True) if word)
        spans = (int(FRESH_SECONDS * MICRO), int(DEAD_SECONDS * MICRO), EMPTY_MS)
        return self._pipe.run(EXCHANGE, keys, self._boot, *spans, *(word for _, word in words))

    async def leave(self) -> None:
        """Take back what this worker has told: it ends of its own will."""
        gone = [self._pipe.submit("HDEL", key, self._boot) for key in self._written]
        if self._reported:
            gone.append(self._pipe.submit("HDEL", _REPORTS, self._boot))
            gone.append(self._pipe.submit("ZREM", _REPORTED, self._boot))
        for failed in await asyncio.gather(*gone, return_exceptions=True):
            if isinstance(failed, StoreDown):
                raise failed


def _board(name: str) -> str:
    return f"{TAG}load:{name}"
