"""How the counters in Redis stand, read without changing them: for whoever may only read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.core.types import Ask, Dimension, Verdict
from gateway.store import Ledger, periods
from gateway.store.local.counters import Counters, Spending
from gateway.store.rebuild import budgets_of
from gateway.store.redis.connection import Pipe
from gateway.store.redis.liveness import DEAD

MICRO = 1_000_000


async def look(pipe: Pipe, ledger: Ledger, ask: Ask, tag: str, complete: str) -> Verdict:
    """What `admit` would say now, its standings those before the call. `complete` exists while the budgets do."""
    seconds, micros = await pipe.call("TIME")
    now = int(seconds) * MICRO + int(micros)
    counters = Counters(lambda: now / MICRO)
    dead = [boot.decode() for boot in await pipe.call("ZRANGEBYSCORE", DEAD, now, "+inf")]
    dimensions = ask.plan.dimensions
    known = bool(await pipe.call("EXISTS", complete))
    if not known and any(dimension.kind == "budget" for dimension in dimensions):  # they are rebuilt for the next call
        sums = await ledger.sums(periods.first_day("month", now / MICRO), periods.day(now / MICRO))
        counters.restore(budgets_of(sums, now / MICRO))
    await asyncio.gather(*(_read(pipe, counters, each, tag, now, dead, known) for each in dimensions))
    return counters.look(ask)


async def _read(
    pipe: Pipe, counters: Counters, dimension: Dimension, tag: str, now: int, dead: Sequence[str], known: bool
) -> None:
    key = dimension.key
    if dimension.kind == "rate":
        counters.arrives(key, int(float(await pipe.call("GET", tag + key) or 0)))
    elif dimension.kind == "lease":
        members = await pipe.call("ZRANGEBYSCORE", tag + key, now + 1, "+inf")
        counters.leases[key] = set(_living(members, dead))
    elif known:
        assert dimension.period is not None
        number, settled = await pipe.call("HMGET", tag + key, "w", "s")
        spending = Spending(-1 if number is None else int(number), int(settled or 0))
        open_ = _living(await pipe.call("ZRANGEBYSCORE", f"{tag}{key}:open", now + 1, "+inf"), dead)
        spending.reserved = sum(int(member.rpartition(" ")[2]) for member in open_)
        counters.spent(key, spending)


def _living(members: Sequence[bytes], dead: Sequence[str]) -> list[str]:
    """Those that no worker holds which is known to have died."""
    texts = [member.decode() for member in members]
    return [text for text in texts if not any(boot in text for boot in dead)]
