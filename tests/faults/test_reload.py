"""Ten thousand calls during twenty reloads of the routing table: at full size what tests/integration does in small."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from faults.report import Report
from harness.gateway_process import gateway_process
from harness.redis_server import redis_server
from harness.upstream import Upstream
from integration.storm import Storm, storm

CALLS = 10_000


@pytest.mark.timeout(900)
async def test_ten_thousand_calls_during_twenty_reloads(upstream: Upstream, report: Report) -> None:
    weather = Storm(upstream)
    with redis_server() as own, gateway_process(weather.text(0), redis_url=own.url) as gateway:
        issued = await asyncio.to_thread(gateway.issue)
        calls = await storm(gateway, weather, issued.secret, CALLS, at_once=32)
    lost = [call for call in calls if call.status != 200 or not call.whole]
    astray = [
        call for call in calls if not call.headers.get("x-trunkline-target", "").startswith(f"storm-{call.label}")
    ]
    hashes = Counter(call.headers.get("x-trunkline-config") for call in calls)
    report.fault(
        22,
        "20 reloads under load, one of them broken",
        len(calls),
        "0 lost, 0 misrouted",
        f"{len(lost)} lost, {len(astray)} misrouted",
        f"{len(hashes)} tables",
    )
    assert (len(lost), len(astray)) == (0, 0), [(call.status, call.body[:200]) for call in lost[:3]]
    assert len(calls) >= CALLS and len(hashes) > weather.reloads / 2
