"""A rolling upgrade from the version before the short way, and back: both serve on one Redis meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faults import earlier
from faults.balancer import Balancer
from faults.exactness import Case, exact
from faults.fleet import ANSWER, Fleet, fleet, route, serving
from faults.limits import DIMENSIONS, key, limit
from faults.report import Report
from faults.test_rolling import ENVIRONMENT, call_on, target  # noqa: F401  a fixture
from faults.volley import chat, eventually, volley
from harness.gateway_process import TRUNKLINE, GatewayProcess
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream

pytestmark = pytest.mark.skipif(not earlier.had(), reason="python tests/faults/earlier.py builds the earlier version")

LIMIT, CALLERS, CALLS = 300, 32, 1500
PATIENT = {"TRUNKLINE_REDIS_TIMEOUT": "30"}
"""The earlier version takes a busy machine for an outage of Redis."""
OLD_NAMES = {"connect": "30s", "first_byte": "30s", "idle": "60s"}
"""Both versions know these."""


@pytest.fixture(scope="module")
def mixed(upstream: Upstream, redis: RedisServer) -> Iterator[Fleet]:
    """Two gateways of each version."""
    table = {"routes": {"m": route(upstream, "m", timeouts=OLD_NAMES)}}
    with fleet(table, redis.url, gateways=2, env=PATIENT) as started:
        for gateway in [started.start(earlier.COMMAND) for _ in range(2)]:
            gateway.wait_ready(60)
        yield started


@pytest.mark.parametrize("dimension", DIMENSIONS)
async def test_a_limit_is_exact_over_both(
    mixed: Fleet, redis: RedisServer, upstream: Upstream, report: Report, dimension: str
) -> None:
    served = serving(upstream, "m")
    issued = await mixed.issue(limit=limit(dimension, LIMIT))
    name = key(dimension, "key", issued.record.id)
    result = await exact(mixed, redis, served, Case(dimension, "m", issued.secret, LIMIT, name))
    expected = f"{LIMIT}" if result.most == LIMIT else f"{LIMIT} to {result.most} (leaks)"
    report.add(f"upgrade: {dimension} over both versions", result.tries, expected, f"{result.admitted}")


@pytest.mark.parametrize("maker", ["earlier", "ours"])
async def test_a_key_of_either_is_good_at_both_until_either_revokes_it(
    mixed: Fleet, upstream: Upstream, maker: str
) -> None:
    serving(upstream, "m").script = ANSWER
    ours, before = mixed.gateways[0], mixed.gateways[-1]
    made = (before if maker == "earlier" else ours).key("--rpm", "1000")
    assert {call.status for call in await volley(mixed.ports, [chat("m", made["secret"])] * 8)} == {200}
    (ours if maker == "earlier" else before).keys("revoke", made["id"])
    assert {call.status for call in await volley(mixed.ports, [chat("m", made["secret"])] * 8)} == {401}


class Rolling:
    """The gateways that serve now, each of which is replaced by one of the other version."""

    def __init__(self, stack: ExitStack, folder: Path, table: str, url: str, balancer: Balancer) -> None:
        self._stack, self._folder, self._balancer = stack, folder, balancer
        self._options: dict[str, Any] = {"redis_url": url, "workers": 2, "env": ENVIRONMENT | PATIENT}
        self._table, self.gateways = table, list[GatewayProcess]()

    def start(self, trunkline: list[str]) -> GatewayProcess:
        folder = self._folder / f"gateway-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        gateway = GatewayProcess(self._table, folder, trunkline=trunkline, **self._options)
        self._stack.callback(gateway.stop)
        self.gateways.append(gateway)
        self._balancer.add(gateway.port)
        return gateway

    async def replace(self, trunkline: list[str]) -> None:
        """The oldest one, once the new one serves."""
        fresh = self.start(trunkline)
        await eventually(lambda: fresh.port in self._balancer.ready, "calls go to the new gateway", 60)
        gateway = self.gateways.pop(0)
        gateway.process.terminate()
        assert await asyncio.to_thread(gateway.process.wait, 40) == 0, gateway.stderr()
        await self._balancer.remove(gateway.port)


@pytest.mark.timeout(900)
async def test_gateways_are_upgraded_and_set_back_under_load(
    upstream: Upstream,
    redis: RedisServer,
    target: Target,  # noqa: F811
    tmp_path: Path,
    report: Report,
) -> None:
    balancer, over = Balancer(), asyncio.Event()
    table = json.dumps({"routes": {"m": route(upstream, "rolling", timeouts=OLD_NAMES)}})
    with ExitStack() as stack:
        rolling = Rolling(stack, tmp_path, table, redis.url, balancer)
        try:
            for _ in range(2):
                rolling.start(earlier.COMMAND)
            await eventually(lambda: len(balancer.ready) == 2, "both are ready", 60)
            room = ("--concurrency", str(2 * CALLERS))
            secret = (await asyncio.to_thread(rolling.gateways[0].key, *room))["secret"]
            callers = [
                asyncio.create_task(call_on(balancer, [chat("m", secret, stream=True), chat("m", secret)], over))
                for _ in range(CALLERS)
            ]
            for trunkline in [TRUNKLINE, TRUNKLINE, earlier.COMMAND, earlier.COMMAND]:
                await rolling.replace(trunkline)
            await eventually(lambda: balancer.seen.total() >= CALLS, "enough calls", 120)
            over.set()
            await asyncio.gather(*callers)
        finally:
            await balancer.close()
    lost = balancer.seen.total() - balancer.seen["whole"]
    report.add("upgrade / 2 gateways to this version and back", balancer.seen.total(), "0 failed", f"{lost} failed")
    assert dict(balancer.seen) == {"whole": balancer.seen.total()}
