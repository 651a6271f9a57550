"""How long a revoked key still gets in: never where it has limits; without limits for as long as nobody says a word."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from faults.fleet import Fleet, fleet, route, serving
from faults.report import Report
from faults.volley import Exchange, chat, percentile
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream

from gateway.auth.cache import DEAF_SECONDS, STALE_SECONDS
from gateway.core.types import Limit

REVOCATIONS, CLIENTS = 12, 9
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
    """Every subscription is cut as soon as it is there."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.02):
            own_redis.ask("CLIENT", "KILL", "TYPE", "pubsub")

    thread = threading.Thread(target=run)
    thread.start()
    yield
    over.set()
    thread.join()


async def late(three: Fleet, limit: Limit, seconds: float) -> list[float]:
    """Revoke a key in use through all gateways; how long after that each call was sent that still got in."""
    issued = await three.issue(limit=limit)
    over, calls = asyncio.Event(), list[Exchange]()

    async def client(port: int) -> None:
        while not over.is_set():
            call = Exchange(chat("m", issued.secret))
            await call.join(port)
            call.send()
            await call.end
            call.leave()
            calls.append(call)
            await asyncio.sleep(0.002)

    clients = [asyncio.create_task(client(three.ports[number % len(three.ports)])) for number in range(CLIENTS)]
    await asyncio.sleep(0.3)
    await three.administer(lambda registrar: registrar.revoke(issued.record.id))
    revoked = time.monotonic()
    await asyncio.sleep(seconds)
    over.set()
    await asyncio.gather(*clients)
    assert {call.status for call in calls} == {200, 401}, {call.status for call in calls}
    assert all(call.status == 401 for call in calls if call.sent > revoked + seconds - 0.1), "it is never refused"
    return [call.sent - revoked for call in calls if call.status == 200 and call.sent > revoked]


async def many(three: Fleet, upstream: Upstream, limit: Limit, seconds: float) -> tuple[list[float], int]:
    """The last late call of each of several revocations, 0 if there was none; and how many there were in all."""
    serving(upstream, "m")
    found = [await late(three, limit, seconds) for _ in range(REVOCATIONS)]
    return [max(each, default=0.0) for each in found], sum(map(len, found))


def tell(report: Report, name: str, expected: str, lasts: list[float], count: int) -> None:
    figures = ", ".join(
        f"{what} {1000 * percentile(lasts, share):.0f}" for what, share in (("p50", 0.5), ("p99", 0.99))
    )
    number = f"{figures}, max {1000 * max(lasts):.0f} ms"
    report.add(f"revoked {name}", len(lasts), expected, f"{count} late calls", number)


async def test_a_key_with_limits(three: Fleet, upstream: Upstream, report: Report) -> None:
    lasts, count = await many(three, upstream, LIMITED, 0.4)
    assert count == 0, "admission compares versions: not one call may pass"
    tell(report, "key with limits, all well", "0 late calls", lasts, count)


@pytest.mark.usefixtures("deaf")
async def test_a_key_with_limits_while_nobody_hears(three: Fleet, upstream: Upstream, report: Report) -> None:
    lasts, count = await many(three, upstream, LIMITED, 0.4)
    assert count == 0
    tell(report, "key with limits, pub/sub killed", "0 late calls", lasts, count)


async def test_a_key_without_limits(three: Fleet, upstream: Upstream, report: Report) -> None:
    lasts, count = await many(three, upstream, FREE, 0.5)
    assert max(lasts) < 0.2
    tell(report, "key without limits, all well", "at once", lasts, count)


@pytest.mark.usefixtures("deaf")
async def test_a_key_without_limits_while_nobody_hears(three: Fleet, upstream: Upstream, report: Report) -> None:
    lasts, count = await many(three, upstream, FREE, DEAF_SECONDS + 1)
    assert max(lasts) < DEAF_SECONDS + 0.2
    tell(report, "key without limits, pub/sub killed", f"within {DEAF_SECONDS:.0f} s", lasts, count)
    report.add("revoked elsewhere, Redis down", 0, f"within {STALE_SECONDS:.0f} s", "the rule, not waited for")
