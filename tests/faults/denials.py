"""A call that one dimension denies leaves every other counter as it was; looked up in Redis itself."""

from __future__ import annotations

from typing import Any

from faults.fleet import ANSWER, Fleet
from faults.limits import DIMENSIONS, limit
from faults.volley import chat, eventually, leave, volley
from harness.redis_server import RedisServer
from harness.upstream import Act, Target, event, stream

from gateway.core.types import Limit

TRIES = 120
ROOM = 100_000


def _everything(denying: str) -> Limit:
    """Room for one call in one dimension, and for many in all others."""
    combined = limit(denying, 1)
    for dimension in DIMENSIONS:
        combined = combined.over(limit(dimension, ROOM))
    return combined


def counters(redis: RedisServer, id: str) -> dict[str, Any]:
    """Every counter whose name holds `id`, with its content."""
    reads = {"string": ("GET",), "hash": ("HGETALL",), "zset": ("ZRANGE", 0, -1)}
    found = {}
    for kind in ("rate", "lease", "budget"):
        for name in redis.keys(f"{{tl}}:{kind}:*{id}*"):
            command, *more = reads[redis.ask("TYPE", name)]
            found[name] = redis.ask(command, name, *more)
    return found


async def denied_without_a_charge(fleet: Fleet, redis: RedisServer, target: Target, dimension: str) -> int:
    """Use the one place up, be denied often through every gateway, and compare; how often."""
    issued = await fleet.issue(limit=_everything(dimension), tenant=f"of-{dimension}")
    await fleet.set_tenant(f"of-{dimension}", limit("rpm", ROOM))
    id, held = issued.record.id, dimension == "concurrency"
    target.script = stream(event("Hi"), Act.STALL) if held else ANSWER
    first = await volley(fleet.ports[:1], [chat("m", issued.secret, stream=held)], hold=True)
    assert first[0].status == 200, bytes(first[0].seen)
    if not held:
        await eventually(lambda: not redis.keys(f"{{tl}}:lease:*{id}*"), "the call is settled")
    before = counters(redis, id)
    assert len(before) >= len(DIMENSIONS) - 2, before
    calls = await volley(fleet.ports, [chat("m", issued.secret)] * TRIES)
    after = counters(redis, id)
    leave(first)
    assert {call.status for call in calls} == {429}
    assert after == before
    return TRIES
