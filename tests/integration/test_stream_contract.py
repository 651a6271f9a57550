"""The stream contract where all goes well: in every dialect a client gets the target's events as they are, at once."""

from __future__ import annotations

import json
import time

import pytest
from harness.dialects import EVERY_KIND, KINDS, Event, StreamKind, sse
from harness.upstream import DONE, END, Act, Gate, Script, Slowly, Step, chunk, head, stream
from integration.streaming import ASKED, WORDS, Speaking, datas, nothing_left

CHATS = [kind for kind in EVERY_KIND if kind.endpoint == "chat/completions" and kind.dialect.opening is not None]
ONE = [kind for kind in KINDS if kind.choices == 1]


def may_wait(event: Event, asked: bool) -> bool:
    """The role alone promises nothing; the end waits for what is told beside a usage that the client does not see."""
    return event.kind == "role" or (event.kind == "finish" and not asked)


def mark(event: Event) -> bytes:
    """By which a client knows the event, in whatever dialect it arrives."""
    if event.kind in ("usage", "done"):
        return b'"prompt_tokens":7' if event.kind == "usage" else b"data: [DONE]\n\n"
    return json.dumps(event.text, ensure_ascii=False).encode() if event.text else event.data


@pytest.mark.parametrize("asked", [False, True], ids=["plain", "usage"])
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_each_event_comes_as_it_is_and_at_once(speak: Speaking, kind: StreamKind, asked: bool) -> None:
    events = kind.stream(WORDS)
    gates = [Gate() for _ in events]
    steps: list[Step] = [step for pair in zip(gates, datas(events), strict=True) for step in pair]
    target = speak.target(kind.dialect.name)
    target.script = stream(*steps)

    with speak.listen(kind, **ASKED if asked else {}) as client:
        for gate, event in zip(gates, events, strict=True):
            gate.open()
            hidden = event.kind == "usage" and not asked
            if not hidden and not may_wait(event, asked):
                client.until(mark(event))
        kind.dialect.shown(events, client.rest(), asked)

    assert target.calls[0].json()["stream_options"]["include_usage"] is True
    assert len(target.calls) == 1


@pytest.mark.parametrize("how", ["at once", "in pieces", "closed", "with a length", "trailers", "extensions"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_framing_makes_no_difference(speak: Speaking, kind: StreamKind, how: str) -> None:
    events = kind.stream(WORDS)
    asked = len(how) % 2 == kind.choices % 2
    answer = speak.ask(kind, framed(b"".join(event.data for event in events), how), **ASKED if asked else {})
    kind.dialect.shown(events, answer.body, asked)
    assert "x-trailer" not in repr(answer.headers).lower()


def framed(body: bytes, how: str) -> Script:
    """A whole stream in one of the ways in which HTTP says where a body ends."""
    start = head(content_type="text/event-stream", transfer_encoding="chunked")
    if how == "at once":
        return [start + chunk(body) + END]
    if how == "in pieces":
        cuts = range(0, len(body), 101)
        return [Slowly(start + b"".join(chunk(body[at : at + 101]) for at in cuts) + END, 67)]
    if how == "closed":
        return [head(content_type="text/event-stream", connection="close") + body, Act.CUT]
    if how == "with a length":
        return [head(content_type="text/event-stream", content_length=len(body)) + body]
    if how == "trailers":
        return [start + chunk(body) + b"0\r\nX-Trailer: 1\r\nX-Trailer-2: 2\r\n\r\n"]
    return [start + b'%X;name="value"\r\n%b\r\n' % (len(body), body) + b"0;last\r\n\r\n"]


@pytest.mark.parametrize("kind", ONE, ids=str)
def test_comments_pass_at_once_and_those_before_the_first_event_with_it(speak: Speaking, kind: StreamKind) -> None:
    events = kind.stream(WORDS)
    texts = [event.data for event in events if event.kind == "text"]
    gates = [Gate(), Gate()]
    rest = [event.data for event in events if event.kind in ("finish", "done")]
    speak.target(kind.dialect.name).script = stream(
        b": before\n\n", b":\n\n", texts[0], gates[0], b": between\n\n", gates[1], *texts[1:], *rest
    )
    with speak.listen(kind) as client:
        assert client.until(mark(next(event for event in events if event.kind == "text"))).startswith(b": before\n\n")
        gates[0].open()
        client.until(b": between\n\n")
        gates[1].open()
        assert client.rest().endswith(DONE)
        assert client.body.startswith(b": before\n\n:\n\ndata: ")


@pytest.mark.parametrize("kind", CHATS, ids=str)
def test_an_opening_that_says_more_than_the_role_does_not_wait(speak: Speaking, kind: StreamKind) -> None:
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}
    for more in ({"content": "Hi"}, {"content": None, "tool_calls": [call]}, {"reasoning_content": "Hm"}):
        choice = {"index": 0, "delta": {"role": "assistant", **more}, "finish_reason": None}
        opening = sse(kind.dialect.chunk(kind.endpoint, [choice]))
        gate = Gate()
        ends = [event.data for event in kind.stream(WORDS) if event.kind in ("finish", "done")]
        speak.target(kind.dialect.name).script = stream(opening, gate, *ends)
        with speak.listen(kind) as client:
            client.until(opening)
            gate.open()
            assert client.rest() == opening + b"".join(ends)


@pytest.mark.parametrize("kind", CHATS, ids=str)
def test_an_answer_may_be_empty(speak: Speaking, kind: StreamKind) -> None:
    """The role, and why there is nothing else."""
    events = [event for event in kind.stream([[""], [""]]) if event.kind != "text"]
    answer = speak.ask(kind, stream(*datas(events)))
    assert answer.status == 200
    kind.dialect.shown(events, answer.body, False)


def test_a_stream_may_last_longer_than_the_idle_time(over_sockets: Speaking) -> None:
    """Which bounds the time between two events. What is slow here are packets: there is nothing to wait for."""
    kind = ONE[0]
    events = kind.stream([["x"] * 300])
    body = b"".join(chunk(event.data) for event in events)
    start = head(content_type="text/event-stream", transfer_encoding="chunked")
    began = time.monotonic()
    answer = over_sockets.ask(kind, [start, Slowly(body + END, 20)], patience="pausing-")
    assert time.monotonic() - began > 1.6, "the stream was too short to show anything"
    kind.dialect.shown(events, answer.body, False)


def test_good_streams_leave_nothing_in_flight(in_this_process: Speaking, over_sockets: Speaking) -> None:
    """Runs last in this file."""
    for speak in (in_this_process, over_sockets):
        nothing_left(speak)
