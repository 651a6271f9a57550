"""10,000 calls that end in every way there is leave nothing behind: no slot, no reservation, no connection."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from faults.fleet import Fleet, fleet, route
from faults.leftovers import leftovers
from faults.report import Report
from faults.volley import Exchange, chat, eventually, leave, volley
from faults.ways import HASTY, any_of, live, prepare, target_names
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Act, Upstream, event, stream

from gateway.core.types import Allowance, Budget, Limit

CALLS, CLIENTS = 10_000, 64
AMPLE = Limit(concurrency=CLIENTS, tpm=100_000_000, budget=Budget(month=Allowance(tokens=10**9, cost_micros=10**9)))
TIGHT = Limit(concurrency=3, rpm=600, otpm=200_000, budget=Budget(day=Allowance(tokens=10**8)))


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def two(upstream: Upstream, own_redis: RedisServer) -> Iterator[Fleet]:
    routes = {name: route(upstream, name, timeouts=HASTY) for name in target_names()}
    routes["calm"] = route(upstream, "good-s", "calm")
    with fleet({"routes": routes}, own_redis.url, gateways=2) as started:
        yield started


@pytest.mark.timeout(900)
async def test_nothing_is_left_of_calls_that_ended_in_every_way(
    two: Fleet, own_redis: RedisServer, upstream: Upstream, report: Report
) -> None:
    prepare(upstream)
    ample, tight = await two.issue(limit=AMPLE), await two.issue(limit=TIGHT, tenant="tight")
    await two.set_tenant("tight", Limit(concurrency=2))
    began = time.monotonic()
    statuses = await everything(two, {"ample": ample.secret, "tight": tight.secret})
    seconds = time.monotonic() - began
    left = await leftovers(two, own_redis, upstream)
    assert not any(left.values()), left
    assert not two.logged("a bug of ours") and not two.logged("Traceback")
    assert {200, 400, 429, 502, 504} <= set(statuses), statuses
    await ledgers_agree(own_redis, [ample.record.id, tight.record.id])
    usable = await all_slots(two, upstream, ample.secret)
    assert usable == CLIENTS
    report.add(
        "leaks: slots, reservations, gates, calls at targets",
        CALLS,
        "0, 0, 0, 0",
        "0, 0, 0, 0",
        f"{CALLS / seconds:,.0f} calls/s",
    )
    report.add("leaks: slots usable afterwards", CLIENTS, f"{CLIENTS}", f"{usable}", f"statuses {dict(statuses)}")


async def everything(two: Fleet, secrets: dict[str, str]) -> Counter[int]:
    """All the calls; what their clients saw, 0: they had left before there was anything to see."""
    chance, turns, statuses = random.Random(3), iter(range(CALLS)), Counter[int]()

    async def client() -> None:
        for turn in turns:
            way, name, secret, options = any_of(chance, secrets)
            call = Exchange(chat(name, secret, **options))
            await live(call, two.ports[turn % len(two.ports)], way, chance)
            statuses[call.status] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return statuses


async def ledgers_agree(redis: RedisServer, ids: list[str]) -> None:
    """What the budgets say was spent is what the ledger says was used."""

    def used(id: str) -> int:
        entries = [json.loads(fields["entry"]) for _, fields in redis.ask("XRANGE", "{tl}:ledger", "-", "+")]
        return sum(entry.get("input", 0) + entry.get("output", 0) for entry in entries if entry["key_id"] == id)

    def spent(id: str) -> int:
        return int(redis.ask("HGET", redis.keys(f"{{tl}}:budget:key:{id}:*:tokens")[0], "s"))

    for id in ids:
        await eventually(lambda id=id: used(id) == spent(id), f"ledger {used(id)}, budget {spent(id)}", 5)  # type: ignore[misc]


async def all_slots(two: Fleet, upstream: Upstream, secret: str) -> int:
    """How many streams of a key can be under way at once."""
    upstream.target("good-s").script = stream(event("Hi"), Act.STALL)
    calls = await volley(two.ports, [chat("calm", secret, stream=True)] * (CLIENTS + 10), hold=True)
    statuses = Counter(call.status for call in calls)
    leave(calls)
    assert statuses == {200: CLIENTS, 429: 10}, statuses
    return statuses[200]
