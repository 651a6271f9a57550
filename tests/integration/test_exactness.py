"""Two gateways of two workers on one Redis admit what a limit says, to the call; `make test-faults` tries harder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from faults.denials import denied_without_a_charge
from faults.exactness import Case, exact
from faults.fleet import Fleet, fleet, route, serving
from faults.limits import in_table, key, limit
from faults.volley import hang_up
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream

LIMIT = 100


@pytest.fixture(scope="module")
def two(upstream: Upstream, redis: RedisServer) -> Iterator[Fleet]:
    routes = {
        "m": route(upstream, "exact", "m"),
        "all": route(upstream, "exact", "all", limits=in_table("concurrency", LIMIT)),
        "each": route(upstream, "exact", "each", key_limits=in_table("otpm", LIMIT)),
    }
    with fleet({"routes": routes}, redis.url, gateways=2) as started:
        yield started


@pytest_asyncio.fixture
async def target(upstream: Upstream) -> AsyncIterator[Target]:
    yield serving(upstream, "exact")
    await hang_up()


@pytest.mark.parametrize("dimension", ["rpm", "tpm", "concurrency", "tokens", "money"])
async def test_of_a_key(two: Fleet, redis: RedisServer, target: Target, dimension: str) -> None:
    issued = await two.issue(limit=limit(dimension, LIMIT))
    name = key(dimension, "key", issued.record.id)
    await exact(two, redis, target, Case(dimension, "m", issued.secret, LIMIT, name))


async def test_of_a_tenant(two: Fleet, redis: RedisServer, target: Target) -> None:
    await two.set_tenant("exact", limit("tokens", LIMIT))
    issued = await two.issue(tenant="exact")
    name = key("tokens", "tenant", "exact")
    await exact(two, redis, target, Case("tokens", "m", issued.secret, LIMIT, name))


async def test_of_a_model(two: Fleet, redis: RedisServer, target: Target) -> None:
    issued = await two.issue()
    name = key("concurrency", "model", "all")
    await exact(two, redis, target, Case("concurrency", "all", issued.secret, LIMIT, name))


async def test_of_a_key_on_a_model(two: Fleet, redis: RedisServer, target: Target) -> None:
    issued = await two.issue()
    name = key("otpm", "key_model", f"{issued.record.id}:each")
    await exact(two, redis, target, Case("otpm", "each", issued.secret, LIMIT, name))


@pytest.mark.parametrize("dimension", ["rpm", "otpm", "concurrency", "tokens", "money"])
async def test_a_denial_charges_nothing_else(two: Fleet, redis: RedisServer, target: Target, dimension: str) -> None:
    await denied_without_a_charge(two, redis, target, dimension)
