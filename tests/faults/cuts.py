"""Streams that stop somewhere: in the middle of anything, by every way in which a server or a network can stop."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from faults.volley import Exchange
from harness.captures import Capture
from harness.dialects import Event, StreamKind
from harness.upstream import Act, Received, Script, Slowly, Step, Upstream, chunk, head, whole
from harness.verdicts import Verdict, heard, judge

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
    sent: bool = False
    """The target was asked, and has sent it. It was not where its connection ended as the call was written to it."""
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
        if received.method == "GET":
            return whole({})
        cut = self.cuts[received.json()["seed"]]
        cut.sent = True
        return cut.script


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
            said[event.choice] = said.get(event.choice, "") + event.text
    return said


def drawn(kind: StreamKind, number: int, chance: random.Random) -> Cut:
    """A stream of this kind, cut somewhere: anywhere, or where an event or a chunk ends."""
    words = [[chance.choice(WORDS) for _ in range(chance.randrange(1, 9))] for _ in range(kind.choices)]
    for said in words:
        said[0] = said[0] or "x"
    events = kind.stream(words)
    how = chance.choice(["chunked by events", "chunked anyhow", "with a length", "until it is closed"])
    way = chance.choice([*WAYS, "end"])
    if way == "end":
        script, arrived = ended([event.data for event in events], how, chance)
    else:
        script, arrived = stopped([event.data for event in events], how, WAYS[way], chance)
    asked = {"stream_options": {"include_usage": True}} if chance.random() < 0.5 else {}
    return Cut(
        call=kind.call(kind.dialect.name, seed=number, **asked),
        path=f"/v1/{kind.endpoint}",
        truth=sayings(events, b"".join(event.data for event in events)),
        least=sayings(events, arrived),
        way=way,
        script=script,
    )


def stopped(events: list[bytes], how: str, act: Act, chance: random.Random) -> tuple[Script, bytes]:
    """The connection does this after so many bytes; and what of the body has arrived by then."""
    start, pieces = framed(events, how, chance)
    raw = start + b"".join(pieces)
    edges = [len(start)]
    for piece in pieces:
        edges.append(edges[-1] + len(piece))
    at = chance.choice(edges) if chance.random() < 0.3 else chance.randrange(len(raw) + 1)
    arrived = b"".join(payload(piece, how) for piece, edge in zip(pieces, edges[1:], strict=True) if edge <= at)
    sent: Step = Slowly(raw[:at], max(1, at // chance.randrange(1, 4))) if chance.random() < 0.3 else raw[:at]
    if act is Act.STALL and at == len(raw):
        return [sent], arrived  # a whole answer leaves its connection usable
    return [sent, act], arrived


def ended(events: list[bytes], how: str, chance: random.Random) -> tuple[Script, bytes]:
    """The server ends its answer too early, as HTTP wants it; and what it has said by then."""
    body, edges = b"".join(events), [0]
    for event in events:
        edges.append(edges[-1] + len(event))
    at = chance.choice(edges) if chance.random() < 0.6 else chance.randrange(len(body) + 1)
    left = [event[: at - edge] for event, edge in zip(events, edges, strict=False) if edge < at]
    start, pieces = framed(left, how, chance)
    close = [Act.CUT] if how == "until it is closed" else []
    return [start + b"".join(pieces), *close], body[:at]


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
