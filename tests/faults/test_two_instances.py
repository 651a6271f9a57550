"""Counters in one Redis, records and ledger in another: what the first one loses is made again from the second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from faults.fleet import Fleet, fleet, route, serving
from faults.report import Report
from faults.volley import CALL, chat, eventually, volley
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream

from gateway.core.types import Allowance, Budget, Limit

CALLS = 40


class Pair(NamedTuple):
    counters: RedisServer
    records: RedisServer
    fleet: Fleet


@pytest.fixture(scope="module")
def pair(upstream: Upstream) -> Iterator[Pair]:
    with ExitStack() as stack:
        counters, records = (stack.enter_context(redis_server()) for _ in range(2))
        table = {"routes": {"m": route(upstream, "m")}}
        made = fleet(table, counters.url, gateways=2, records_url=records.url)
        yield Pair(counters, records, stack.enter_context(made))


def test_nothing_but_counters_is_where_counters_are(pair: Pair) -> None:
    asyncio.run(pair.fleet.issue())
    assert not pair.counters.keys("{tl}:key:*") and not pair.counters.keys("{tl}:audit")
    assert pair.records.keys("{tl}:key:*") and pair.records.keys("{tl}:audit")


@pytest.mark.parametrize("unit", ["tokens", "money"])
async def test_budgets_are_made_again_from_the_ledger(
    pair: Pair, upstream: Upstream, report: Report, unit: str
) -> None:
    serving(upstream, "m")
    spent = CALLS * CALL
    month = Allowance(tokens=spent) if unit == "tokens" else Allowance(cost_micros=spent)
    used_up, half = (
        await pair.fleet.issue(limit=Limit(budget=Budget(month=month))),
        await pair.fleet.issue(limit=Limit(concurrency=50, budget=Budget(month=month))),
    )
    tries = [*[used_up.secret] * (CALLS + 10), *[half.secret] * (CALLS // 2)]
    calls = await volley(pair.fleet.ports, [chat("m", secret) for secret in tries])
    statuses = [call.status for call in calls]
    assert statuses.count(200) == CALLS + CALLS // 2 and statuses.count(429) == 10, statuses
    done = CALLS + CALLS // 2
    await eventually(lambda: entries(pair) % done == 0, "the ledger is written", 5)
    pair.counters.ask("FLUSHALL")
    after = await volley(
        pair.fleet.ports, [chat("m", secret) for secret in (used_up.secret, half.secret) for _ in range(CALLS)]
    )
    refused, served = after[:CALLS], after[CALLS:]
    assert {call.status for call in refused} == {429}, {call.status for call in refused}
    statuses = [call.status for call in served]
    assert (statuses.count(200), statuses.count(429)) == (CALLS // 2, CALLS // 2), statuses
    report.add(
        f"counters lost: {unit} spent before", CALLS, f"{CALLS} of {CALLS}", "all known again", "0 admitted, 0 5xx"
    )


def entries(pair: Pair) -> int:
    found: int = pair.records.ask("XLEN", "{tl}:ledger")
    return found


async def test_a_key_revoked_in_one_instance_is_refused_by_the_other(pair: Pair, upstream: Upstream) -> None:
    """The version that admission compares is written to both."""
    serving(upstream, "m")
    issued = await pair.fleet.issue(limit=Limit(rpm=1000))
    before = await volley(pair.fleet.ports, [chat("m", issued.secret)] * 8)
    await pair.fleet.administer(lambda registrar: registrar.revoke(issued.record.id))
    after = await volley(pair.fleet.ports, [chat("m", issued.secret)] * 8)
    assert {call.status for call in before} == {200}
    assert {call.status for call in after} == {401}
