"""Every adapter: what it makes of a client's body, of an answer, of a stream and of a refusal."""

from __future__ import annotations

import functools
import json
from typing import Any

from fuzz.feeding import Harness, allow, short
from harness.captures import captures

from backends import registry
from backends.api import Call, Chunk, Endpoint, RefusesInItsOwnWords, RequestRefused, Target, UpstreamFault
from backends.body import Body
from backends.openai import OpenAI
from backends.samples import OPENAI
from backends.sse import Splitter
from gateway.core.errors import BadRequest
from gateway.http.client import read
from gateway.limits.estimate import Estimator
from gateway.routing.features import read as read_prompt

ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions", "embeddings")
TARGET = Target("t", "http://t.invalid", "Served/Name", "credential")
ANSWERS = (UpstreamFault, ValueError, RecursionError)
"""What `Adapter.reply` and `chunk` may raise."""


@functools.cache
def adapters() -> dict[str, Any]:
    return {name: registry.load(name) for name in registry.installed()}


def check_request(data: bytes) -> None:
    """From the client's bytes to the target's: refused in our words, or said with the target's name for the model."""
    for endpoint in ENDPOINTS:
        call = allow(BadRequest, read, "call-1", endpoint, data, b"application/json")
        if call is None:
            continue
        _measured(call)
        for adapter in adapters().values():
            asked = allow(RequestRefused, adapter.request, call, TARGET)
            if asked is not None:
                assert all(text.isascii() and text.isprintable() for pair in asked.headers.items() for text in pair)
                _said(adapter, call, asked.body)


def _measured(call: Call) -> None:
    """What admission and routing read of a body."""
    estimator = Estimator()
    estimate = estimator.estimate(call, "k", "r")
    assert estimate.input >= 0 and estimate.output >= 0 and min(estimate.least) >= 0
    estimator.learn(call, "k", "r", 10, 10)
    prompt = read_prompt(call, {}, model="m", tenant="t", tokens=estimate.input)
    assert prompt.tokens >= 0


def _said(adapter: Any, call: Call, body: bytes) -> None:
    said = Body(body)
    assert said.get("model", str, "") == TARGET.model
    if isinstance(adapter, OpenAI):
        for name, value in call.body.fields.items():
            assert name in ("model", "stream_options") or said.fields[name] == value
        assert said.fields.keys() - call.body.fields.keys() <= {"stream_options"}


def check_reply(data: bytes) -> None:
    """A whole answer is understood, tells a fault, or is not understood; also one with a status of 4xx."""
    for call in _calls(stream=False):
        for adapter in adapters().values():
            reply = allow(ANSWERS, adapter.reply, call, data)
            if reply is not None:
                assert isinstance(reply.body, bytes)
                assert not isinstance(adapter, OpenAI) or reply.body == data
            if isinstance(adapter, RefusesInItsOwnWords):
                for status in (400, 422, 424):
                    _refused(adapter, call, status, data)


def _refused(adapter: RefusesInItsOwnWords, call: Call, status: int, data: bytes) -> None:
    said = allow(UpstreamFault, adapter.refusal, call, status, data)
    if said is not None:
        assert 400 <= said[0] < 500
        json.loads(said[1], parse_int=str)


def check_stream(data: bytes) -> None:
    """A stream's events; whoever wants the usage gets the server's bytes, where the server speaks OpenAI's language."""
    splitter = Splitter()
    events = [*splitter.feed(data), *filter(None, [splitter.close()])]
    for call in _calls(stream=True):
        for adapter in adapters().values():
            reader = adapter.open(call) if hasattr(adapter, "open") else adapter
            chunks, read = _chunks(reader, call, events)
            assert all(chunk.tokens >= 0 for chunk in chunks)
            if isinstance(adapter, OpenAI) and call.include_usage:
                assert b"".join(chunk.data for chunk in chunks) == b"".join(events[:read])


def _chunks(reader: Any, call: Call, events: list[bytes]) -> tuple[list[Chunk], int]:
    """What becomes of the events, up to one that tells a fault or is not understood; and how many these are."""
    chunks: list[Chunk] = []
    for index, event in enumerate(events):
        made = allow(ANSWERS, reader.chunk, call, event)
        if made is None:
            return chunks, index
        chunks += made
    return chunks, len(events)


@functools.cache
def _calls(*, stream: bool) -> tuple[Call, ...]:
    asked = b'{"model": "m", "messages": [], "prompt": "x", "input": "x", "stream": %s}' % (
        b"true" if stream else b"false"
    )
    endpoints = ENDPOINTS[:2] if stream else ENDPOINTS
    wishes = (False, True) if stream else (False,)
    return tuple(
        Call("call-1", endpoint, "m", Body(asked), "application/json", stream, wish)
        for endpoint in endpoints
        for wish in wishes
    )


_seen = [capture for capture in captures("*/*") if not capture.cut and capture.status < 500]
REQUEST = Harness(
    "adapter-request",
    check_request,
    short([sample.asked for sample in OPENAI] + [seen.request for seen in _seen], 3000),
)
REPLY = Harness(
    "adapter-reply",
    check_reply,
    short([sample.answered for sample in OPENAI] + [seen.body for seen in _seen if not seen.streamed], 3000),
)
STREAM = Harness(
    "adapter-stream",
    check_stream,
    short([sample.answered for sample in OPENAI] + [seen.body for seen in _seen if seen.streamed]),
)
