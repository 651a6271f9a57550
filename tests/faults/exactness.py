"""One exactness case: many concurrent calls through all gateways against one limit, and what must hold of them."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import NamedTuple

from faults.fleet import ANSWER, Fleet
from faults.limits import RATES
from faults.volley import CALL, Exchange, chat, eventually, leave, volley
from harness.redis_server import RedisServer
from harness.upstream import Act, Target, event, stream

WINDOW = 60_000_000
"""Of a rate, in microseconds."""


class Case(NamedTuple):
    """What is limited: calls of `model` with `secret`, to `limit` calls, counted in Redis under `name`."""

    dimension: str
    model: str
    secret: str
    limit: int
    name: str


class Result(NamedTuple):
    """What came of a case; a rate may admit more than its limit by what has leaked meanwhile, and no more."""

    tries: int
    admitted: int
    most: int
    seconds: float


async def exact(fleet: Fleet, redis: RedisServer, target: Target, case: Case) -> Result:
    """Three times as many calls at once as the limit has room for: it admits as many as it says, to the last one."""
    held, is_rate = case.dimension == "concurrency", case.dimension in RATES
    target.restore()
    target.script = stream(event("Hi"), Act.STALL) if held else ANSWER
    began = time.monotonic()
    calls = await volley(fleet.ports, [chat(case.model, case.secret, stream=held)] * (3 * case.limit), hold=held)
    seconds = time.monotonic() - began
    try:
        statuses = Counter(call.status for call in calls)
        odd = [bytes(call.seen[:600]) for call in calls if call.status not in (200, 429)][:1]
        assert set(statuses) == {200, 429}, f"statuses {dict(statuses)} {odd}"
        admitted = statuses[200]
        most = case.limit + (math.ceil(seconds * 1e6 * case.limit / WINDOW) if is_rate else 0)
        assert case.limit <= admitted <= most, f"{admitted} of {len(calls)} admitted, not {case.limit} to {most}"
        assert len(target.calls) == admitted, "the target saw another number of calls than were admitted"
        assert not any(call.degraded for call in calls)
        if is_rate:
            _check_rate(redis, case, admitted, calls)
        elif held:
            assert redis.ask("ZCARD", case.name) == case.limit
    finally:
        leave(calls)
    if held:
        await eventually(lambda: redis.ask("ZCARD", case.name) == 0, "the slots are free", 10)
    elif not is_rate:
        await _check_budget(redis, case)
    return Result(len(calls), admitted, most, seconds)


def _check_rate(redis: RedisServer, case: Case, admitted: int, calls: list[Exchange]) -> None:
    """The bucket holds what it was charged since the first admission: as much as was admitted, settled or not."""
    units = RATES[case.dimension][1]
    cost = math.ceil(WINDOW / (case.limit * units)) * units
    wall = time.time() - time.monotonic()
    first = int(redis.ask("GET", case.name)) / 1e6 - admitted * cost / 1e6
    sent, answered = (min(times) + wall for times in zip(*((call.sent, call.answered) for call in calls), strict=True))
    wrong = "the bucket was charged for {} calls than were admitted"
    assert first >= sent - 0.001, wrong.format("fewer")
    assert first <= answered + 0.001, wrong.format("more")


async def _check_budget(redis: RedisServer, case: Case) -> None:
    """All that was admitted is settled, and nothing is reserved any more."""
    spent = [str(case.limit * CALL), "0"]
    await eventually(
        lambda: redis.ask("HMGET", case.name, "s", "o") == spent,
        lambda: f"settled and reserved are {spent}, not {redis.ask('HMGET', case.name, 's', 'o')}",
    )
