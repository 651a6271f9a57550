"""Counters in one Redis, records and ledger in another: what the first one loses is made again from the second."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from faults.fleet import Fleet, fleet, route, serving
from faults.report import Report
from faults.volley import CALL, chat, eventually, steady, volley
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream

from gateway.core.types import Allowance, Budget, Limit

CALLS = 40
LIMIT, RATE, LOSSES = 300, 80.0, 3
MOMENT = 0.3
"""Seconds before a loss whose calls the ledger may not have: it is written every 200 ms."""


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
    await eventually(lambda: entries(pair, used_up.record.id, half.record.id) == done, "the ledger is written", 5)
    pair.counters.ask("FLUSHALL")
    after = await volley(
        pair.fleet.ports, [chat("m", secret) for secret in (used_up.secret, half.secret) for _ in range(CALLS)]
    )
    refused, served = after[:CALLS], after[CALLS:]
    assert {call.status for call in refused} == {429}, {call.status for call in refused}
    statuses = [call.status for call in served]
    assert (statuses.count(200), statuses.count(429)) == (CALLS // 2, CALLS // 2), statuses
    report.fault(
        18, f"budget of {unit} spent before", CALLS, f"{CALLS} of {CALLS}", "all known again", "0 admitted, 0 5xx"
    )


def entries(pair: Pair, *ids: str) -> int:
    """How many calls of these keys the ledger holds."""
    found = [json.loads(fields["entry"]) for _, fields in pair.records.ask("XRANGE", "{tl}:ledger", "-", "+")]
    return sum(entry["key_id"] in ids for entry in found)


async def test_counters_lost_again_and_again_under_load(pair: Pair, upstream: Upstream, report: Report) -> None:
    """What was spent in the last moments before a loss may be missing from the ledger or counted twice; no more."""
    serving(upstream, "m")
    month = Allowance(tokens=LIMIT * CALL)
    issued = await pair.fleet.issue(limit=Limit(budget=Budget(month=month)))
    told: list[bool] = []
    raws = [("", chat("m", issued.secret))]
    load = asyncio.create_task(steady(pair.fleet.ports, raws, RATE, lambda: bool(told)))
    for _ in range(LOSSES):
        await asyncio.sleep(1.0)
        await asyncio.to_thread(pair.counters.ask, "FLUSHALL")
    await asyncio.sleep(LIMIT / RATE)
    told.append(True)
    calls = await load
    statuses = Counter(call.status for call in calls)
    moments = LOSSES * RATE * MOMENT
    assert set(statuses) == {200, 429}, statuses
    assert abs(statuses[200] - LIMIT) <= moments, f"{statuses[200]} of {LIMIT} admitted"
    expected, seen = f"{LIMIT} +- {moments:.0f}", f"{statuses[200]}"
    report.fault(18, f"{LOSSES} times under load", len(calls), expected, seen, f"{RATE:.0f} calls/s")


async def test_a_key_revoked_in_one_instance_is_refused_by_the_other(pair: Pair, upstream: Upstream) -> None:
    """The version that admission compares is written to both."""
    serving(upstream, "m")
    issued = await pair.fleet.issue(limit=Limit(rpm=1000))
    before = await volley(pair.fleet.ports, [chat("m", issued.secret)] * 8)
    await pair.fleet.administer(lambda registrar: registrar.revoke(issued.record.id))
    after = await volley(pair.fleet.ports, [chat("m", issued.secret)] * 8)
    assert {call.status for call in before} == {200}
    assert {call.status for call in after} == {401}
