"""Gateways are replaced one after the other under load, and nobody notices; a worker dies, and only its calls do."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from faults.balancer import Balancer
from faults.fleet import Fleet, fleet, route
from faults.report import Report
from faults.volley import chat, eventually, volley
from harness.gateway_process import GatewayProcess
from harness.redis_server import RedisServer
from harness.upstream import DONE, Gate, Received, Script, Target, Upstream, answer, event, stream, usage_event, whole
from integration.engine import Pause

CALLERS = 48
GATEWAYS, WORKERS = 3, 2
CALLS = 3000
ENVIRONMENT = {"TRUNKLINE_DRAIN_ACCEPT": "2", "TRUNKLINE_GRACE": "20"}
"""Eight health checks have the time to learn of it; by default it is 5 s, as those of many balancers take seconds."""
STREAM_SECONDS = 1.5


@pytest.fixture
def target(upstream: Upstream) -> Target:
    """Every other call is a stream that takes its time."""
    found = upstream.target("rolling")
    found.restore()
    pauses = [step for n in range(5) for step in (event(f"{n}"), Pause(STREAM_SECONDS / 5))]
    slow = stream(*pauses, event(finish="stop"), usage_event(), DONE)
    quick = [Pause(0.05), *whole(answer())]

    def answers(received: Received) -> Script:
        if received.method == "GET":
            return whole({})
        return slow if received.json()["stream"] else quick

    found.answers = answers  # type: ignore[method-assign]
    return found


class Rolling:
    """The gateways that serve now, each of which can be replaced by another one."""

    def __init__(self, stack: ExitStack, folder: Path, table: str, url: str, balancer: Balancer) -> None:
        self._stack, self._folder, self._table, self._url, self._balancer = stack, folder, table, url, balancer
        self.gateways: list[GatewayProcess] = []
        self.seconds: list[float] = []
        """From the signal to the end of each."""

    def start(self) -> GatewayProcess:
        folder = self._folder / f"gateway-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        gateway = GatewayProcess(self._table, folder, redis_url=self._url, workers=WORKERS, env=ENVIRONMENT)
        self._stack.callback(gateway.stop)
        self.gateways.append(gateway)
        self._balancer.add(gateway.port)
        return gateway

    async def replace(self) -> None:
        """End the oldest one, then start another and wait until calls go there."""
        gateway = self.gateways.pop(0)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, 40) == 0, gateway.stderr()
        self.seconds.append(time.monotonic() - began)
        await self._balancer.remove(gateway.port)
        fresh = self.start()
        await eventually(lambda: fresh.port in self._balancer.ready, "calls go to the new gateway", 60)


@pytest.mark.timeout(900)
async def test_a_rolling_restart_under_load_fails_no_call(
    upstream: Upstream, redis: RedisServer, target: Target, tmp_path: Path, report: Report
) -> None:
    balancer, over = Balancer(), asyncio.Event()
    table = json.dumps({"routes": {"m": route(upstream, "rolling")}})
    with ExitStack() as stack:
        rolling = Rolling(stack, tmp_path, table, redis.url, balancer)
        try:
            for _ in range(GATEWAYS):
                rolling.start()
            await eventually(lambda: len(balancer.ready) == GATEWAYS, "all are ready", 60)
            secret = (await asyncio.to_thread(rolling.gateways[0].issue)).secret
            raws = [chat("m", secret, stream=True), chat("m", secret)]
            callers = [asyncio.create_task(call_on(balancer, raws, over)) for _ in range(CALLERS)]
            for _ in range(GATEWAYS):
                await rolling.replace()
            await eventually(lambda: balancer.seen.total() >= CALLS, "enough calls", 120)
            over.set()
            await asyncio.gather(*callers)
        finally:
            await balancer.close()
    lost = balancer.seen.total() - balancer.seen["whole"]
    cut = balancer.seen["cut"] + balancer.seen["ended without [DONE]"]
    report.add(
        "21 SIGTERM while streaming / rolling restart",
        balancer.seen.total(),
        "0 failed, exit 0",
        f"{lost} failed",
        f"cut streams {cut}, refused {balancer.seen['refused']}; each gateway gone in {max(rolling.seconds):.1f} s",
    )
    assert dict(balancer.seen) == {"whole": balancer.seen.total()}
    assert balancer.connections < balancer.seen.total() / 4, "connections are kept"


async def call_on(balancer: Balancer, raws: Sequence[bytes], over: asyncio.Event) -> None:
    while not over.is_set():
        for raw in raws:
            await balancer.call(raw)


@pytest.fixture
def one(upstream: Upstream, redis: RedisServer) -> Iterator[Fleet]:
    with fleet({"routes": {"m": route(upstream, "rolling")}}, redis.url, gateways=1, workers=4) as started:
        yield started


async def test_a_killed_worker_takes_only_its_own_calls_with_it(one: Fleet, upstream: Upstream, report: Report) -> None:
    target, streams = upstream.target("rolling"), 100
    target.restore()
    gate = Gate()
    target.script = stream(event("Hi"), event("there"), gate, event(finish="stop"), usage_event(), DONE)
    (gateway,) = one.gateways
    main = psutil.Process(gateway.process.pid)
    workers = main.children()
    await eventually(lambda: all(map(listens, workers)), "all workers listen", 30)
    secret = (await one.issue()).secret
    calls = await volley([gateway.port], [chat("m", secret, stream=True)] * streams, hold=True)
    assert [call.status for call in calls] == [200] * streams
    holds = {worker.pid: held(worker, gateway.port) for worker in workers}
    doomed = max(workers, key=lambda worker: holds[worker.pid])
    began = time.monotonic()
    doomed.kill()
    await eventually(lambda: any(listens(w) for w in main.children() if w not in workers), "a new worker listens", 60)
    took = time.monotonic() - began
    gate.open()
    await asyncio.wait([call.end for call in calls], timeout=20)
    lost = [call for call in calls if not (call.whole and DONE in call.body)]
    report.add(
        "20 kill -9 one worker",
        streams,
        "lost: its own only",
        f"{len(lost)} lost, it had {holds[doomed.pid]}",
        f"another one serves after {took:.1f} s",
    )
    assert len(lost) == holds[doomed.pid] > 0
    target.script = None
    again = await volley([gateway.port], [chat("m", secret)] * streams)
    assert [call.status for call in again] == [200] * streams


def listens(worker: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_LISTEN for connection in worker.net_connections())


def held(worker: psutil.Process, port: int) -> int:
    """Connections of clients."""
    found = worker.net_connections()
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port for c in found)
