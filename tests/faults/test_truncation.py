"""A stream that is cut anywhere is never shown as whole: 1,000 cuts at random bytes in every dialect."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from faults.report import Report
from faults.volley import Exchange
from harness.captures import Capture, captures
from harness.dialects import KINDS, Event, StreamKind
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Received, Script, Slowly, Step, Upstream, chunk, head, whole
from harness.verdicts import Untrue, Verdict, heard, judge
from integration.client import eventually, request

CUTS, AT_ONCE = 1_000, 64
CALM = {"connect": "20s", "first_byte": "2s", "idle": "1s"}
"""A busy machine is not what is tested."""
WAYS = {"FIN": Act.CUT, "RST": Act.RESET, "stall": Act.STALL}
WORDS = ["Once", " upon", " a", " tïme", "", " 🐎 in", ' "quotes"\n', " data: [DONE]\n\n", " the", " end."]


@dataclass
class Cut:
    """One stream, the bytes of it that are sent, what is done then, and what the client got."""

    call: dict[str, Any]
    path: str
    truth: dict[int, str]
    """What each choice says, were it not cut."""
    least: dict[int, str]
    """What of it must reach the client if nothing that was sent is lost."""
    way: str
    script: Script
    got: Exchange | None = None

    @property
    def verdict(self) -> Verdict:
        assert self.got is not None
        return judge(self.got.status, unframed(self.got), self.truth)


class Cutter:
    """The target that sends each call the stream of the number in its `seed`."""

    def __init__(self, upstream: Upstream, backend: str) -> None:
        self.target = upstream.target(f"cut-{backend}")
        self.target.restore()
        self.target.answers = self._answers  # type: ignore[method-assign]
        self.cuts: list[Cut] = []

    def _answers(self, received: Received) -> Script:
        return whole({}) if received.method == "GET" else self.cuts[received.json()["seed"]].script


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    routes = {
        backend: {
            "targets": [{"name": backend, "backend": backend, "url": upstream.target(f"cut-{backend}").url}],
            "timeouts": CALM,
        }
        for backend in ("openai", "vllm", "tgi", "llamacpp", "sglang")
    }
    with gateway_process(json.dumps({"routes": routes})) as started:
        yield started


@pytest.fixture(scope="module")
def secret(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


def unframed(got: Exchange) -> bytes:
    """The body without its chunked coding, which must be whole: no client can be asked to notice that it is not."""
    if "content-length" in got.headers:
        return got.body
    assert got.whole, f"the connection ended within the answer: {got.body[-80:]!r}"
    said, rest = b"", got.body
    while size := int(rest[: rest.index(b"\r\n")], 16):
        start = rest.index(b"\r\n") + 2
        said += rest[start : start + size]
        assert rest[start + size : start + size + 2] == b"\r\n"
        rest = rest[start + size + 2 :]
    return said


def framed(events: list[bytes], how: str, chance: random.Random) -> tuple[bytes, list[bytes]]:
    """A response's head, and the pieces that its body is sent in: none of them is understood before it is whole."""
    body = b"".join(events)
    if how == "chunked by events":
        return head(content_type="text/event-stream", transfer_encoding="chunked"), [*map(chunk, events), b"0\r\n\r\n"]
    if how == "chunked anyhow":
        pieces = []
        while body:
            size = chance.randrange(1, 400)
            pieces.append(chunk(body[:size]))
            body = body[size:]
        return head(content_type="text/event-stream", transfer_encoding="chunked"), [*pieces, b"0\r\n\r\n"]
    more: dict[str, Any] = {"content_length": len(body)} if how == "with a length" else {"connection": "close"}
    return head(content_type="text/event-stream", **more), [body[i : i + 1] for i in range(len(body))]


def payload(piece: bytes, how: str) -> bytes:
    return piece.partition(b"\r\n")[2][:-2] if how.startswith("chunked") else piece


def sayings(events: list[Event], arrived: bytes) -> dict[int, str]:
    """What the choices say in those of the events that have arrived whole."""
    said: dict[int, str] = {}
    size = 0
    for event in events:
        size += len(event.data)
        if size <= len(arrived) and event.kind in ("text", "finish"):
            said[event.index] = said.get(event.index, "") + event.text
    return said


def drawn(kind: StreamKind, number: int, chance: random.Random) -> Cut:
    """A stream of this kind, cut somewhere: anywhere, or where an event or a chunk ends."""
    words = [[chance.choice(WORDS) for _ in range(chance.randrange(1, 9))] for _ in range(kind.choices)]
    for said in words:
        said[0] = said[0] or "x"
    events = kind.stream(words)
    how = chance.choice(["chunked by events", "chunked anyhow", "with a length", "until it is closed"])
    start, pieces = framed([event.data for event in events], how, chance)
    raw = start + b"".join(pieces)
    edges = [len(start)]
    for piece in pieces:
        edges.append(edges[-1] + len(piece))
    at = chance.choice(edges) if chance.random() < 0.3 else chance.randrange(len(raw) + 1)
    arrived = b"".join(payload(piece, how) for piece, edge in zip(pieces, edges[1:], strict=True) if edge <= at)
    way = chance.choice(list(WAYS))
    act = [] if way == "stall" and at == len(raw) else [WAYS[way]]  # a whole answer leaves its connection usable
    sent: Step = Slowly(raw[:at], max(1, at // chance.randrange(1, 4))) if chance.random() < 0.3 else raw[:at]
    asked = {"stream_options": {"include_usage": True}} if chance.random() < 0.5 else {}
    return Cut(
        call=kind.call(kind.dialect.name, seed=number, **asked),
        path=f"/v1/{kind.endpoint}",
        truth=sayings(events, b"".join(event.data for event in events)),
        least=sayings(events, arrived),
        way=way,
        script=[sent, *act],
    )


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
    if cut.way != "FIN":
        return  # a reset may overtake what was sent; a stall on a busy machine may seem to begin early
    if any(cut.least.values()):
        assert cut.got.status == 200, f"{cut.got.status} after {cut.least}"
        texts = heard(unframed(cut.got)).texts
        for index, text in cut.least.items():
            assert texts.get(index, "").startswith(text), f"{text!r} was sent, {texts} arrived"


def tell(report: Report, name: str, tries: int, verdicts: Counter[str], untrue: list[str], seconds: float) -> None:
    silent = sum("SILENT" in case for case in untrue)
    number = f"{verdicts['complete']} whole, {tries - verdicts['complete']} told; {tries / seconds:,.0f} calls/s"
    report.add(f"5 RST/FIN mid-stream: {name}", tries, "0 silent truncations", f"{silent} silent truncations", number)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["openai", "vllm", "tgi", "llamacpp", "sglang"])
async def test_no_cut_is_silent(
    gateway: GatewayProcess, secret: str, upstream: Upstream, report: Report, backend: str
) -> None:
    chance = random.Random(backend)
    kinds = [kind for kind in KINDS if kind.dialect.name == backend]
    cutter = Cutter(upstream, backend)
    cuts = [drawn(kinds[number % len(kinds)], number, chance) for number in range(CUTS)]
    began = time.monotonic()
    await made(gateway, secret, cutter, cuts)
    verdicts, untrue = judged(cuts)
    tell(report, backend, CUTS, verdicts, untrue, time.monotonic() - began)
    assert not untrue, f"{len(untrue)} of {CUTS}:\n" + "\n".join(untrue[:5])
    assert min(verdicts[what] for what in ("complete", "told in the stream", "told by the status")) > CUTS // 50
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
            cuts.append(cut_capture(capture, server, at, len(cuts)))
    began = time.monotonic()
    await made(gateway, secret, cutter, cuts)
    verdicts, untrue = judged(cuts)
    tell(report, f"{len(recorded)} recorded {server}", len(cuts), verdicts, untrue, time.monotonic() - began)
    assert not untrue, f"{len(untrue)} of {len(cuts)}:\n" + "\n".join(untrue[:5])


def cut_capture(capture: Capture, model: str, at: int, number: int) -> Cut:
    """A stream as a real server sent it, ended in an orderly way after so many bytes."""
    start = head(content_type="text/event-stream", transfer_encoding="chunked")
    end = b"0\r\n\r\n" if number % 2 else b""
    sent = start + (chunk(capture.body[:at]) if at else b"") + end
    arrived = capture.body[: capture.body.rfind(b"\n\n", 0, at) + 2] if b"\n\n" in capture.body[:at] else b""
    return Cut(
        call={**capture.asked, "model": model, "seed": number},
        path=f"/v1/{capture.endpoint}",
        truth=heard(capture.body).texts,
        least=heard(arrived).texts,
        way="FIN",
        script=[sent, Act.CUT],
    )


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
