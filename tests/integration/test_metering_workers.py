"""Several workers answer one scrape: sums are whole, and never fall, also when a worker dies."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.gateway_process import GatewayProcess
from harness.upstream import Act, Target, stream, usage_event, whole
from integration.client import Samples, Wire, ask, chat, eventually, get, request, samples, total

from gateway.core.types import Limit


def flood(gateway: GatewayProcess, key: str, calls: int, **fields: object) -> None:
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: ask(gateway, chat("fleet", **fields), key), range(calls)))
    assert {reply.status for reply in replies} == {200}


def workers(gateway: GatewayProcess) -> list[int]:
    """The pids of the processes that serve: children of the supervisor that hold the port."""
    children = Path(f"/proc/{gateway.process.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def settled(gateway: GatewayProcess) -> Samples:
    """What was counted, once the workers have told each other of all calls so far."""

    def look() -> Samples | None:
        lines, found = len(gateway.records()), samples(gateway)
        return found if total(found, "requests_total") == lines else None

    return eventually(look, "as many calls are counted as have lines")


def test_sums_are_those_of_all_workers(fleet: list[GatewayProcess], shared_target: Target) -> None:
    gateway, key = fleet[0], fleet[0].issue(limit=Limit(rpm=10_000)).secret
    before = settled(gateway)
    flood(gateway, key, 60)
    once = ("requests_total", "upstream_attempts_total", "request_duration_seconds_count", "redis_seconds_count")
    expected = {**dict.fromkeys(once, 60), "tokens_total": 60 * 7}

    def grown() -> dict[str, float]:
        after = samples(gateway)
        return {name: total(after, name) - total(before, name) for name in expected}

    eventually(lambda: all(grown()[name] >= count for name, count in expected.items()), "60 calls are counted")
    assert grown() == expected
    assert "pid=" not in gateway.metrics()


def test_every_worker_tells_the_same(fleet: list[GatewayProcess]) -> None:
    """Each scrape is a new connection, so it may meet either worker."""

    def alike() -> bool:
        return len({total(samples(fleet[0]), "requests_total") for _ in range(20)}) == 1

    eventually(alike, "both have told what they had counted")


def test_sums_never_fall_when_a_worker_dies(fleet: list[GatewayProcess], shared_target: Target) -> None:
    gateway, key = fleet[1], fleet[1].issue().secret
    flood(gateway, key, 40)
    before = samples(gateway)
    shared_target.scripts = [stream(usage_event(), Act.STALL) for _ in range(8)]
    hanging = [Wire(gateway.port) for _ in range(8)]
    for connection in hanging:
        connection.send(request(chat("fleet", stream=True), key))
    eventually(lambda: total(samples(gateway), "in_flight") == 8 or None, "eight calls in flight")
    victim, *others = workers(gateway)
    assert len(others) == 1

    os.kill(victim, signal.SIGKILL)

    def respawned() -> list[int] | None:
        now = workers(gateway)
        return now if len(now) == 2 and victim not in now else None

    eventually(respawned, "a new worker")
    for connection in hanging:
        connection.leave()
    eventually(lambda: total(samples(gateway), "in_flight") == 0 or None, "the dead worker's calls are forgotten")
    for _ in range(10):
        after = samples(gateway)
        fallen = [
            name
            for name, value in before.items()
            if name[0].endswith(("_total", "_count", "_sum", "_bucket")) and after.get(name, 0) < value
        ]
        assert fallen == []
    shared_target.restore()
    flood(gateway, key, 40)
    more = total(before, "requests_total") + 40
    eventually(lambda: total(samples(gateway), "requests_total") >= more, "40 calls more are counted")
    assert get(gateway, "/health").status == 200


def test_attempts_tell_what_came_of_them(fleet: list[GatewayProcess], shared_target: Target) -> None:
    gateway, key = fleet[0], fleet[0].issue().secret
    before = settled(gateway)
    shared_target.script = whole({}, 500)
    for _ in range(3):
        assert ask(gateway, chat("fleet"), key).status == 502

    def grown() -> float:
        labels = {"target": "fleet", "outcome": "upstream_failed"}
        name = "upstream_attempts_total"
        return total(samples(gateway), name, **labels) - total(before, name, **labels)

    eventually(lambda: grown() >= 3, "three attempts are counted")
    assert grown() == 3
