"""A stream that is cut anywhere is never shown as whole: 1,000 cuts at random bytes in every dialect."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from faults.cuts import Cut, Cutter, cut_capture, drawn, unframed
from faults.report import Report
from faults.volley import Exchange
from harness.captures import captures
from harness.dialects import EVERY_KIND
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream
from harness.verdicts import Untrue, heard, judge
from integration.client import eventually, request

CUTS, AT_ONCE = 1_000, 64
CALM = {"connect": "20s", "first_output": "2s", "whole": "2s", "idle": "1s"}
PATIENT = {"connect": "20s", "first_output": "20s", "whole": "20s", "idle": "20s"}
"""For targets that never stall: a busy machine is not what is tested."""
BACKENDS = ("openai", "vllm", "tgi", "llamacpp", "sglang")


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    routes: dict[str, Any] = {
        backend: {
            "targets": [{"name": backend, "backend": backend, "url": upstream.target(f"cut-{backend}").url}],
            "timeouts": CALM,
        }
        for backend in BACKENDS
    }
    for backend in BACKENDS:
        target = {**routes[backend]["targets"][0], "name": f"patient-{backend}"}
        routes[f"patient-{backend}"] = {"targets": [target], "timeouts": PATIENT}
    with gateway_process(json.dumps({"routes": routes})) as started:
        yield started


@pytest.fixture(scope="module")
def secret(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


async def made(gateway: GatewayProcess, secret: str, cutter: Cutter, cuts: list[Cut]) -> None:
    """All these calls, so many at once."""
    cutter.cuts = cuts
    turns = iter(cuts)

    async def client() -> None:
        for cut in turns:
            cut.got = Exchange(request(cut.call, secret, cut.path))
            await cut.got.join(gateway.port)
            cut.got.send()
            async with asyncio.timeout(30):
                await cut.got.end
            cut.got.leave()

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


def judged(cuts: list[Cut]) -> tuple[Counter[str], list[str]]:
    """What the clients were told, and each case in which that was not true."""
    verdicts, untrue = Counter[str](), []
    for cut in cuts:
        assert cut.got is not None
        try:
            verdicts[cut.verdict] += 1
            kept(cut)
        except (AssertionError, ValueError) as error:
            untrue.append(f"{cut.way} {cut.path} {cut.script[0]!r}: {error}")
    return verdicts, untrue


def kept(cut: Cut) -> None:
    """What was sent before an orderly end has reached the client, who else got an honest status."""
    assert cut.got is not None
    if cut.way not in ("FIN", "end") or timed_out(cut):
        return  # a reset may overtake what was sent
    if not cut.sent:
        assert cut.got.status == 502, cut.got.status  # its kept connection ended as it was taken
        return
    if any(cut.least.values()):
        assert cut.got.status == 200, f"{cut.got.status} after {cut.least}"
        texts = heard(unframed(cut.got)).texts
        for index, text in cut.least.items():
            assert texts.get(index, "").startswith(text), f"{text!r} was sent, {texts} arrived"


def timed_out(cut: Cut) -> bool:
    """As it must where the target stalls, and may where this machine does."""
    assert cut.got is not None
    return b'"code":"upstream_timeout"' in cut.got.body


def tell(report: Report, name: str, tries: int, verdicts: Counter[str], untrue: list[str], seconds: float) -> None:
    silent = sum("SILENT" in case for case in untrue)
    number = f"{verdicts['complete']} whole, {tries - verdicts['complete']} told; {tries / seconds:,.0f} calls/s"
    report.fault(5, name, tries, "0 silent truncations", f"{silent} silent truncations", number)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_no_cut_is_silent(
    gateway: GatewayProcess, secret: str, upstream: Upstream, report: Report, backend: str
) -> None:
    chance = random.Random(backend)
    kinds = [kind for kind in EVERY_KIND if kind.dialect.name == backend]
    cutter = Cutter(upstream, backend)
    cuts = [drawn(kinds[number % len(kinds)], number, chance) for number in range(CUTS)]
    began = time.monotonic()
    await made(gateway, secret, cutter, cuts)
    verdicts, untrue = judged(cuts)
    tell(report, backend, CUTS, verdicts, untrue, time.monotonic() - began)
    assert not untrue, f"{len(untrue)} of {CUTS}:\n" + "\n".join(untrue[:5])
    assert min(verdicts[what] for what in ("complete", "told in the stream", "told by the status")) > CUTS // 50
    assert sum(timed_out(cut) for cut in cuts if cut.way != "stall") < CUTS // 20, (
        "the gateway, or this machine, stalls"
    )
    await_records(gateway, verdicts, backend)


OUTCOMES = {"complete": "answered", "told in the stream": "broke", "told by the status": "failed"}


def await_records(gateway: GatewayProcess, verdicts: Counter[str], model: str) -> None:
    """The records say of these calls what their clients were told."""
    expected = {OUTCOMES[verdict]: count for verdict, count in verdicts.items()}

    def outcomes() -> bool:
        return Counter(line["outcome"] for line in gateway.records() if line.get("route") == model) == expected

    eventually(outcomes, f"the records say {expected}", 10)
    assert "Traceback" not in gateway.stderr()
    assert "gateway_other" not in gateway.metrics()


RECORDED = [
    capture
    for name in (
        "vllm/vllm-chat-stream-n2",
        "vllm/vllm-chat-tools-required-stream",
        "vllm/vllm-completions-stream",
        "llamacpp/llamacpp-chat-stream-usage",
    )
    for capture in captures(name)
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("server", ["vllm", "llamacpp"])
async def test_recorded_streams_cut_at_every_byte(
    gateway: GatewayProcess, secret: str, upstream: Upstream, report: Report, server: str
) -> None:
    cutter = Cutter(upstream, server)
    recorded = [capture for capture in RECORDED if capture.name.startswith(server)]
    cuts: list[Cut] = []
    for capture in recorded:
        for at in range(len(capture.body) + 1):
            cuts.append(cut_capture(capture, f"patient-{server}", at, len(cuts)))
    began = time.monotonic()
    await made(gateway, secret, cutter, cuts)
    verdicts, untrue = judged(cuts)
    tell(report, f"{len(recorded)} recorded {server}", len(cuts), verdicts, untrue, time.monotonic() - began)
    assert not untrue, f"{len(untrue)} of {len(cuts)}:\n" + "\n".join(untrue[:5])
    assert sum(not cut.sent for cut in cuts) < len(cuts) // 50


HI = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":%s}]}\n\n'
ENDED, DONE, ERROR = HI % b'"stop"', b"data: [DONE]\n\n", b'data: {"error":{"message":"x"}}\n\n'


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, DONE),
        (200, HI % b"null"),
        (200, HI % b"null" + DONE),
        (200, ENDED),
        (200, ENDED[:-1]),
        (200, ENDED + ERROR + DONE),
        (200, ERROR),
        (200, ENDED.replace(b"Hi", b"Ho") + DONE),
        (200, ENDED + ENDED + DONE),
        (200, ENDED + DONE + ENDED),
        (400, b'{"error":{"message":"x"}}'),
        (502, b'{"error":{"message":""}}'),
    ],
)
def test_the_judge_sees_a_lie(status: int, body: bytes) -> None:
    with pytest.raises(Untrue):
        judge(status, body, {0: "Hi there" if body.startswith(HI % b"null") else "Hi"})
