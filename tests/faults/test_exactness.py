"""Three gateways of two workers on one Redis: 3,000 concurrent calls against a limit of 1,000 admit exactly 1,000."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.denials import denied_without_a_charge
from faults.exactness import Case, Result, exact
from faults.fleet import Fleet, fleet, route, serving
from faults.limits import DIMENSIONS, in_table, key, limit
from faults.report import Report
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream

LIMIT = 1000


@pytest.fixture(scope="module")
def three(upstream: Upstream, redis: RedisServer) -> Iterator[Fleet]:
    routes = {"m": route(upstream, "m")}
    for dimension in DIMENSIONS:
        routes[f"all-{dimension}"] = route(upstream, "m", f"all-{dimension}", limits=in_table(dimension, LIMIT))
        routes[f"each-{dimension}"] = route(upstream, "m", f"each-{dimension}", key_limits=in_table(dimension, LIMIT))
    with fleet({"routes": routes}, redis.url) as started:
        yield started


@pytest.fixture
def target(upstream: Upstream) -> Target:
    return serving(upstream, "m")


def tell(report: Report, scope: str, dimension: str, result: Result) -> None:
    expected = f"{LIMIT}" if result.most == LIMIT else f"{LIMIT} to {result.most} (leaks)"
    told = f"{result.tries / result.seconds:,.0f} calls/s"
    report.add(f"exact: {dimension} of a {scope}", result.tries, expected, f"{result.admitted}", told)


@pytest.mark.parametrize("dimension", DIMENSIONS)
async def test_of_a_key(three: Fleet, redis: RedisServer, target: Target, report: Report, dimension: str) -> None:
    issued = await three.issue(limit=limit(dimension, LIMIT))
    name = key(dimension, "key", issued.record.id)
    tell(report, "key", dimension, await exact(three, redis, target, Case(dimension, "m", issued.secret, LIMIT, name)))


@pytest.mark.parametrize("dimension", ["rpm", "tpm", "concurrency", "tokens"])
async def test_of_a_tenant(three: Fleet, redis: RedisServer, target: Target, report: Report, dimension: str) -> None:
    tenant = f"tenant-{dimension}"
    await three.set_tenant(tenant, limit(dimension, LIMIT))
    issued = await three.issue(tenant=tenant)
    case = Case(dimension, "m", issued.secret, LIMIT, key(dimension, "tenant", tenant))
    tell(report, "tenant", dimension, await exact(three, redis, target, case))


@pytest.mark.parametrize("dimension", ["rpm", "concurrency", "money"])
async def test_of_a_model(three: Fleet, redis: RedisServer, target: Target, report: Report, dimension: str) -> None:
    issued, model = await three.issue(), f"all-{dimension}"
    case = Case(dimension, model, issued.secret, LIMIT, key(dimension, "model", model))
    tell(report, "model", dimension, await exact(three, redis, target, case))


@pytest.mark.parametrize("dimension", ["otpm", "concurrency", "tokens"])
async def test_of_a_key_on_a_model(
    three: Fleet, redis: RedisServer, target: Target, report: Report, dimension: str
) -> None:
    issued, model = await three.issue(), f"each-{dimension}"
    name = key(dimension, "key_model", f"{issued.record.id}:{model}")
    tell(
        report,
        "key on a model",
        dimension,
        await exact(three, redis, target, Case(dimension, model, issued.secret, LIMIT, name)),
    )


@pytest.mark.parametrize("dimension", DIMENSIONS)
async def test_a_denial_charges_nothing_else(
    three: Fleet, redis: RedisServer, target: Target, report: Report, dimension: str
) -> None:
    tries = await denied_without_a_charge(three, redis, target, dimension)
    report.add(f"denied by {dimension}: other counters", tries, "unchanged", "unchanged", "0 charged")
