"""Redis 6.2, 7 and 8 and Valkey: limits are exact on each of them, and its settings are looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.exactness import Case, exact
from faults.fleet import Fleet, fleet, route, serving
from faults.limits import DIMENSIONS, key, limit
from faults.report import Report
from harness.redis_flavours import FLAVOURS, flavours
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream
from integration.client import eventually

HERE = dict(flavours())
LIMIT = 100


@pytest.fixture(scope="module", params=list(HERE))
def served(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[tuple[str, RedisServer, Fleet]]:
    table = {"routes": {"m": route(upstream, "m")}}
    with redis_server(binary=HERE[request.param]) as redis, fleet(table, redis.url, gateways=2) as two:
        yield request.param, redis, two


async def test_limits_are_exact(served: tuple[str, RedisServer, Fleet], upstream: Upstream, report: Report) -> None:
    name, redis, two = served
    target, seen = serving(upstream, "m"), []
    for dimension in DIMENSIONS:
        issued = await two.issue(limit=limit(dimension, LIMIT))
        where = key(dimension, "key", issued.record.id)
        seen.append(await exact(two, redis, target, Case(dimension, "m", issued.secret, LIMIT, where)))
        redis.ask("SCRIPT", "FLUSH")
    version = redis.ask("INFO", "server")
    shown = version.get("valkey_version") or version["redis_version"]
    admitted = " ".join(f"{result.admitted}" for result in seen)
    report.add(f"{name} ({shown}): each dimension", 3 * LIMIT * len(seen), f"{LIMIT} + leak", admitted)


def test_flavours_that_cannot_be_had_are_told(report: Report) -> None:
    for flavour in FLAVOURS:
        if flavour.name not in HERE:
            report.add(f"{flavour.name}: not here", 0, "tried", "see the top of this run")


def test_a_redis_that_may_evict_is_warned_of(upstream: Upstream, report: Report) -> None:
    options = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    table, wanted = {"routes": {"m": route(upstream, "m")}}, "maxmemory-policy allkeys-lru"
    with redis_server(options=options) as redis, fleet(table, redis.url, gateways=1, workers=1) as one:
        eventually(lambda: wanted in one.gateways[0].stderr(), "the warning")
        assert "set it to noeviction" in one.gateways[0].stderr()
    report.add("Redis with allkeys-lru", 1, "warned of at start", "warned of")


def test_a_redis_that_never_evicts_is_not(upstream: Upstream, redis: RedisServer) -> None:
    with fleet({"routes": {"m": route(upstream, "m")}}, redis.url, gateways=1, workers=1) as one:
        eventually(lambda: "target m is up" in one.gateways[0].stderr(), "the gateway has looked at its target")
        assert "maxmemory-policy" not in one.gateways[0].stderr()
