"""The usage ledger in Redis: every ended call in a stream, and sums by day and by target beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.core.types import Entry, Sum
from gateway.store.local.tally import COUNTED, Tally
from gateway.store.redis.connection import Pipe, script

APPEND = script("append")

MAX_ENTRIES = 250_000
"""Entries the stream keeps, about 300 bytes each; the sums stay when entries go."""
KEEP_DAYS = 400
"""Days that sums stay after their day."""
BATCH_SECONDS = 3600
"""How long a batch is known again."""
DAYS_AT_ONCE = 31

_STREAM, _DAYS, _TARGETS = "{tl}:ledger", "{tl}:usage", "{tl}:targets"


class RedisLedger:
    """Raises `StoreDown` when Redis does not answer; a batch of which that leaves us in doubt may be sent again."""

    def __init__(self, pipe: Pipe, max_entries: int = MAX_ENTRIES) -> None:
        self._pipe, self._max_entries = pipe, max_entries

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        lines = [msgspec.json.encode(entry) for entry in entries]
        keys = [f"{{tl}}:batch:{batch}", _STREAM, _DAYS, _TARGETS]
        arguments: list[Any] = [BATCH_SECONDS, self._max_entries, len(lines), *lines]
        tally = Tally(entries)
        arguments += _additions("", _by_target(tally))
        for of, fields in _by_day(tally).items():
            keys.append(f"{_DAYS}:{of}")
            arguments += _additions(of, fields)
        await asyncio.shield(self._pipe.run(APPEND, keys, *arguments))

    async def sums(self, first: str, last: str) -> list[Sum]:
        tally = Tally()
        days = [raw.decode() for raw in await self._pipe.call("ZRANGEBYLEX", _DAYS, f"[{first}", f"[{last}")]
        for start in range(0, len(days), DAYS_AT_ONCE):
            step = days[start : start + DAYS_AT_ONCE]
            found = await asyncio.gather(*(self._pipe.call("HGETALL", f"{_DAYS}:{of}") for of in step))
            for of, flat in zip(step, found, strict=True):
                for field, count in zip(flat[::2], flat[1::2], strict=True):
                    what, key_id, tenant, route = field.decode().split("|", 3)
                    row = tally.rows.setdefault((of, _plain(key_id), _plain(tenant), route), [0] * 5)
                    row[COUNTED.index(what)] = int(count)
        return tally.sums()

    async def by_target(self) -> dict[str, tuple[int, int]]:
        flat = await self._pipe.call("HGETALL", _TARGETS)
        counts = {field.decode(): int(count) for field, count in zip(flat[::2], flat[1::2], strict=True)}
        names = {field.partition("|")[2] for field in counts}
        return {name: (counts.get(f"in|{name}", 0), counts.get(f"out|{name}", 0)) for name in sorted(names)}


def _by_target(tally: Tally) -> dict[str, int]:
    return {
        f"{what}|{target}": count
        for target, tokens in tally.targets.items()
        for what, count in zip(("in", "out"), tokens, strict=True)
    }


def _by_day(tally: Tally) -> dict[str, dict[str, int]]:
    days: dict[str, dict[str, int]] = {}
    for (of, key_id, tenant, route), row in tally.rows.items():
        fields = days.setdefault(of, {})
        for what, count in zip(COUNTED, row, strict=True):
            fields[f"{what}|{_marked(key_id)}|{_marked(tenant)}|{route}"] = count
    return days


def _additions(of: str, fields: Mapping[str, int]) -> list[Any]:
    """One hash's part of the script's arguments."""
    start = datetime.fromisoformat(of).replace(tzinfo=UTC).timestamp() if of else 0
    added = [(field, count) for field, count in fields.items() if count]
    return [
        of,
        int(start) + (KEEP_DAYS + 1) * 86400 if of else 0,
        len(added),
        *(part for pair in added for part in pair),
    ]


def _marked(name: str) -> str:
    """A name without the separator of fields."""
    return name.replace("%", "%25").replace("|", "%7C")


def _plain(name: str) -> str:
    return name.replace("%7C", "|").replace("%25", "%")
