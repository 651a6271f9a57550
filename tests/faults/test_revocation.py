"""How long a revoked key still gets in: never where it has limits; without limits for as long as nobody says a word."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from faults.fleet import Fleet, fleet, route, serving
from faults.report import Report
from faults.volley import Exchange, chat, eventually, percentile
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream

from gateway.auth.cache import DEAF_SECONDS, STALE_SECONDS
from gateway.core.types import Limit

REVOCATIONS, CLIENTS = 12, 9
TURNS = 2
"""Calls of a client that get in while its gateway is told: word of it and the call may come in one turn of the loop."""
REFUSALS = 3
"""Of each client, before the next revocation."""
LIMITED, FREE = Limit(rpm=1_000_000), Limit()


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def three(upstream: Upstream, own_redis: RedisServer) -> Iterator[Fleet]:
    with fleet({"routes": {"m": route(upstream, "m")}}, own_redis.url, workers=1) as started:
        yield started


@pytest.fixture
def deaf(own_redis: RedisServer) -> Iterator[None]:
    """Every subscription is cut as soon as it is there; tests of those that hear come before."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.02):
            own_redis.ask("CLIENT", "KILL", "TYPE", "pubsub")

    thread = threading.Thread(target=run)
    thread.start()
    yield
    over.set()
    thread.join()


async def late(three: Fleet, redis: RedisServer, limit: Limit) -> list[list[float]]:
    """Revoke a key in use through all gateways; for each client, how long after that calls were sent that got in."""
    issued = await three.issue(limit=limit)
    over, calls = asyncio.Event(), [list[Exchange]() for _ in range(CLIENTS)]

    async def client(number: int) -> None:
        while not over.is_set():
            call = Exchange(chat("m", issued.secret))
            await call.join(three.ports[number % len(three.ports)])
            call.send()
            await call.end
            call.leave()
            calls[number].append(call)
            await asyncio.sleep(0.002)

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await eventually(lambda: all(calls), "all clients are served", 60)
    await three.administer(lambda registrar: registrar.revoke(issued.record.id))
    redis.ask("PING")  # once it answers this, it has told all who listen
    revoked = time.monotonic()
    await eventually(lambda: all(refused(each) >= REFUSALS for each in calls), "all clients are refused", 60)
    over.set()
    await asyncio.gather(*clients)
    for each in calls:
        statuses = [call.status for call in each]
        assert statuses == sorted(statuses) and set(statuses) == {200, 401}, "once refused, always refused"
    return [[call.sent - revoked for call in each if call.status == 200 and call.sent > revoked] for each in calls]


def refused(calls: list[Exchange]) -> int:
    return sum(call.status == 401 for call in calls)


async def many(three: Fleet, redis: RedisServer, upstream: Upstream, limit: Limit) -> list[list[list[float]]]:
    """The late calls of each client of several revocations."""
    serving(upstream, "m")
    return [await late(three, redis, limit) for _ in range(REVOCATIONS)]


def tell(report: Report, name: str, expected: str, found: list[list[list[float]]]) -> None:
    lasts = [max([seconds for each in clients for seconds in each], default=0.0) for clients in found]
    figures = ", ".join(
        f"{what} {1000 * percentile(lasts, share):.0f}" for what, share in (("p50", 0.5), ("p99", 0.99))
    )
    number = f"{figures}, max {1000 * max(lasts):.0f} ms"
    count = sum(len(each) for clients in found for each in clients)
    report.add(f"revoked {name}", len(lasts), expected, f"{count} late calls", number)


def most(found: list[list[list[float]]], after: float) -> int:
    """How many calls of one client got in that were sent so many seconds after a revocation, or later."""
    return max(sum(seconds > after for seconds in each) for clients in found for each in clients)


async def test_a_key_with_limits(three: Fleet, own_redis: RedisServer, upstream: Upstream, report: Report) -> None:
    found = await many(three, own_redis, upstream, LIMITED)
    assert most(found, 0) == 0, "admission compares versions: not one call may pass"
    tell(report, "key with limits, all well", "0 late calls", found)


async def test_a_key_without_limits(three: Fleet, own_redis: RedisServer, upstream: Upstream, report: Report) -> None:
    found = await many(three, own_redis, upstream, FREE)
    assert most(found, 0) <= TURNS
    tell(report, "key without limits, all well", "at once", found)


@pytest.mark.usefixtures("deaf")
async def test_a_key_with_limits_while_nobody_hears(
    three: Fleet, own_redis: RedisServer, upstream: Upstream, report: Report
) -> None:
    found = await many(three, own_redis, upstream, LIMITED)
    assert most(found, 0) == 0
    tell(report, "key with limits, pub/sub killed", "0 late calls", found)


@pytest.mark.usefixtures("deaf")
async def test_a_key_without_limits_while_nobody_hears(
    three: Fleet, own_redis: RedisServer, upstream: Upstream, report: Report
) -> None:
    found = await many(three, own_redis, upstream, FREE)
    assert most(found, DEAF_SECONDS) <= TURNS
    tell(report, "key without limits, pub/sub killed", f"within {DEAF_SECONDS:.0f} s", found)
    report.add("revoked elsewhere, Redis down", 0, f"within {STALE_SECONDS:.0f} s", "the rule, not waited for")
