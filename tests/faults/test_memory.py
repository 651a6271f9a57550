"""What connections cost: 10,000 that are idle, 1,000 streams, readers that do not read."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from faults.crowd import HEALTH, allow_files, joined, newcomers, p99, read_until, resident, worker
from faults.report import Report
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Upstream, event, stream
from integration.client import chat, eventually, request, samples, total

IDLE, STREAMS, READERS = 10_000, 1_000, 200
KIB = 1024
FILES = 16_000


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    allow_files(FILES)
    routes = {
        name: {
            "targets": [{"name": f"memory-{name}", "backend": "openai", "url": upstream.target(f"m-{name}").url}],
            "timeouts": {"first_output": "120s", "whole": "120s", "idle": "120s"},
        }
        for name in ("still", "flood")
    }
    with gateway_process(json.dumps({"routes": routes, "bodies": {"reader": "20s"}})) as started:
        newcomers(started.port, 300)  # what it allocates once
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


def test_idle_connections_and_streams_cost_little_and_keep_nobody_out(
    gateway: GatewayProcess, key: str, upstream: Upstream, report: Report
) -> None:
    target = upstream.target("m-still")
    target.restore()
    target.script = stream(event("Hi"), Act.STALL)
    alone = p99(newcomers(gateway.port, 200))
    before = resident(gateway)
    with joined(gateway.port, STREAMS, request(chat("still", stream=True), key)) as streams:
        assert read_until(streams, b"Hi", 300) == STREAMS
        with_streams = resident(gateway)
        with joined(gateway.port, IDLE, HEALTH) as idle:
            answered = read_until(idle, b'"ok"', 300)
            assert answered == IDLE
            with_all, held = resident(gateway), worker(gateway).num_fds() - 2 * STREAMS
            crowded = newcomers(gateway.port, 200)
    per_stream, per_idle = (with_streams - before) / STREAMS / KIB, (with_all - with_streams) / held / KIB
    assert held > IDLE / 2, "they are not all there at once"
    assert per_idle < 64
    assert per_stream < 256
    eventually(lambda: total(samples(gateway), "in_flight") == 0 or None, "the streams have ended", 120)
    report.fault(
        24,
        "idle, keep-alive",
        IDLE,
        "all are served",
        f"{answered:,} served",
        f"{per_idle:.1f} KiB each, {held:,} held",
    )
    report.fault(24, "streams", STREAMS, "all stream", f"{STREAMS:,} stream", f"{per_stream:.1f} KiB each")
    report.fault(
        24,
        "newcomers meanwhile",
        200,
        "no accept stall",
        "all answered",
        f"p99 {p99(crowded):.1f} ms, alone {alone:.1f}",
    )


def test_readers_that_do_not_read_cost_little_and_slow_nobody_down(
    gateway: GatewayProcess, key: str, upstream: Upstream, report: Report
) -> None:
    target = upstream.target("m-flood")
    target.restore()
    target.script = [*stream(*[event("x" * 1000) * 16] * 64, end=False), Act.STALL]  # about 1 MiB each
    alone = p99(newcomers(gateway.port, 200))
    before = resident(gateway)
    with joined(gateway.port, READERS, request(chat("flood", stream=True), key), room=4096):
        target.wait_for_calls(READERS, 120)
        crowded = newcomers(gateway.port, 400)
        peak = resident(gateway)
        for received in list(target.calls):
            assert received.closed.wait(120), "a slow reader was not cut off"
    eventually(lambda: total(samples(gateway), "in_flight") == 0 or None, "their calls have ended", 60)
    counted = total(samples(gateway), "upstream_attempts_total", outcome="caller_too_slow")
    assert counted == READERS
    each = (peak - before) / READERS / KIB
    assert each < 400
    report.fault(
        13,
        "1 MiB each, nothing read",
        READERS,
        "bounded, cut off after bodies.reader",
        f"{READERS} cut off",
        f"{each:.0f} KiB each, others' p99 {p99(crowded):.1f} ms, alone {alone:.1f}",
    )
