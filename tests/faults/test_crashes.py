"""What a gateway holds when it dies comes back: slots, reservations; and nobody else notices."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest
from faults.fleet import Fleet, fleet, kill, route
from faults.report import Report
from faults.volley import CALL, Exchange, chat, eventually, hang_up, leave, volley
from harness.gateway_process import GatewayProcess, Issued
from harness.redis_server import RedisServer
from harness.upstream import DONE, Act, Gate, Target, Upstream, event, stream, usage_event

from gateway.core.types import Allowance, Budget, Limit
from gateway.store import LEASE_SECONDS

STREAMS = 100
RECLAIMED = 32
"""Expired reservations that one admission cleans up at most."""


@pytest.fixture
def two(upstream: Upstream, redis: RedisServer) -> Iterator[Fleet]:
    """Gateways that a case may kill."""
    routes = {name: route(upstream, name) for name in ("m", "other")}
    with fleet({"routes": routes}, redis.url, gateways=2) as started:
        yield started


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("m")
    found.restore()
    found.script = stream(event("Hi"), Act.STALL)
    return found


async def held(gateway: GatewayProcess, issued: Issued, count: int = STREAMS) -> list[Exchange]:
    """So many streams under way through this gateway, all of them admitted."""
    calls = await volley([gateway.port], [chat("m", issued.secret, stream=True)] * count, hold=True)
    assert [call.status for call in calls] == [200] * count
    return calls


async def freed(gateway: GatewayProcess, issued: Issued, by: float = math.inf) -> float:
    """How long until this gateway admits one more call of a key whose slots were all taken.

    None may be refused that is sent after `by`, in seconds since the epoch.
    """
    began = time.monotonic()
    while True:
        sent = time.time()
        (call,) = await volley([gateway.port], [chat("m", issued.secret, stream=True)], hold=True)
        call.leave()
        await asyncio.sleep(0)  # in which the connection is closed
        if call.status == 200:
            return time.monotonic() - began
        assert call.status == 429, bytes(call.seen)
        assert sent < by, "the first slot has expired"
        assert time.monotonic() - began < 120, "the slots are not back"
        await asyncio.sleep(0.1)


async def test_a_killed_gateway_gives_back_all_it_held(
    two: Fleet, redis: RedisServer, upstream: Upstream, target: Target, report: Report
) -> None:
    doomed, other = two.gateways
    budget = Budget(month=Allowance(tokens=STREAMS * CALL))
    issued = await two.issue(limit=Limit(concurrency=STREAMS, budget=budget))
    gate, neighbour = Gate(), upstream.target("other")
    neighbour.restore()
    neighbour.script = stream(event("Hi"), gate, event(finish="stop"), usage_event(), DONE)
    bystander = await two.issue(limit=Limit(concurrency=20))
    staying = await volley([other.port], [chat("other", bystander.secret, stream=True)] * 20, hold=True)
    calls = await held(doomed, issued)
    lease, spent = (
        f"{{tl}}:{name.format(issued.record.id)}" for name in ("lease:key:{}", "budget:key:{}:month:tokens")
    )
    assert (redis.ask("ZCARD", lease), redis.ask("HGET", spent, "o")) == (STREAMS, str(STREAMS * CALL))
    kill(doomed)
    leave(calls)
    first = float(redis.ask("ZRANGE", lease, 0, 0, "WITHSCORES")[1]) / 1e6
    assert first <= time.time() + LEASE_SECONDS
    took = await freed(other, issued, by=first)
    # Members that have expired are no slots; they are swept out when somebody needs the room.
    await eventually(lambda: redis.ask("ZCOUNT", lease, time.time_ns() // 1000, "+inf") == 0, "no slot is held", 60)
    for _ in range(STREAMS // RECLAIMED):
        await freed(other, issued)
    await eventually(lambda: int(redis.ask("HGET", spent, "o")) == 0, "nothing is reserved", 60)
    gate.open()
    await asyncio.wait([call.end for call in staying], timeout=60)
    assert all(call.whole and DONE.strip() in call.body for call in staying)
    assert not any(call.degraded for call in staying)
    report.fault(20, "whole gateway, slots back", STREAMS, "within 15 s", f"{took:.1f} s", "others lost 0 of 20")


def keep(redis: RedisServer, issued: Issued, boot: str = "") -> None:
    """Have the slots of a key, or those of a worker, expire in an hour: until then only a funeral frees them."""
    lease = f"{{tl}}:lease:key:{issued.record.id}"
    for member in redis.ask("ZRANGE", lease, 0, -1):
        if boot in member:
            redis.ask("ZINCRBY", lease, 3600 * 1_000_000, member)


async def test_a_gateway_that_starts_again_frees_the_slots_of_its_former_self(
    two: Fleet, redis: RedisServer, target: Target, report: Report
) -> None:
    doomed, other = two.gateways
    issued = await two.issue(limit=Limit(concurrency=STREAMS))
    calls = await held(doomed, issued)
    kill(doomed)
    keep(redis, issued)
    leave(calls)
    two.start().wait_ready()
    took = await freed(other, issued)
    report.fault(20, "gateway started again, slots back", STREAMS, "at once", f"{took:.2f} s after it was ready")


async def test_a_killed_worker_is_replaced_and_its_slots_are_freed(
    two: Fleet, redis: RedisServer, target: Target, report: Report
) -> None:
    gateway, other = two.gateways
    issued = await two.issue(limit=Limit(concurrency=STREAMS))
    calls = await held(gateway, issued)
    lease = f"{{tl}}:lease:key:{issued.record.id}"
    places = redis.ask("HGETALL", "{tl}:places")
    holders = Counter(boot for boot in places for call in redis.ask("ZRANGE", lease, 0, -1) if boot in call)
    assert holders.total() == STREAMS
    boot, doomed = holders.most_common(1)[0]
    psutil.Process(int(places[boot].split()[1])).kill()
    keep(redis, issued, boot)
    took = await freed(other, issued)
    lost = [call for call in calls if call.end.done()]
    assert len(lost) == doomed, "the calls of the killed worker end, those of the other one go on"
    await hang_up()
    report.fault(20, "slots back", len(lost), "when replaced", f"{took:.1f} s", f"{len(lost)} calls lost")


async def test_a_long_stream_keeps_its_slot(two: Fleet, target: Target, report: Report) -> None:
    seconds = 2.5 * LEASE_SECONDS
    issued = await two.issue(limit=Limit(concurrency=1, budget=Budget(month=Allowance(tokens=2 * CALL - 1))))
    (stays,) = await held(two.gateways[0], issued, 1)
    began, tries = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        (call,) = await volley(two.ports[1:], [chat("m", issued.secret)])
        assert call.status == 429, f"after {time.monotonic() - began:.1f} s: {bytes(call.seen)!r}"
        tries += 1
        await asyncio.sleep(0.25)
    assert not stays.end.done()
    stays.leave()
    await freed(two.gateways[1], issued)
    report.add("a long stream keeps its slot", tries, "0 others admitted", "0", f"{seconds:.0f} s, 2.5 leases")
