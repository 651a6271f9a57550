"""Calls in a dialect that the server does not speak, without a server: what it is asked, and what its bytes become."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from backends import sse
from backends.api import Call, Target, Usage
from backends.body import Body
from backends.capabilities import Capabilities
from backends.vllm import VLLM
from gateway.core.errors import GatewayError
from gateway.dialects import translated
from gateway.upstream.reading import AnswerLimits, AnswerMemory, reader_for

LIMITS = AnswerLimits(10**7, 10**7)
TARGET = Target("t", "http://t", model="served/name")


class Streamed(NamedTuple):
    """What a client got of one stream."""

    data: bytes
    usage: Usage | None
    failure: GatewayError | None
    done: bool

    @property
    def events(self) -> list[tuple[str, Any]]:
        """Names and values of its events."""
        return list(read(self.data))


class Written(NamedTuple):
    """A server whose model writes its calls in this format, and which does not find them."""

    parser: str
    server: Any = None


def capabilities(endpoint: str, inner: Any = None) -> Capabilities:
    """`inner`: the server's adapter, vLLM's by default, or `Written`."""
    parser, server = inner if isinstance(inner, Written) else (None, inner)
    own = Capabilities.of(VLLM() if server is None else server)
    return translated({"chat/completions": own, "completions": own}, parser)[endpoint]


def a_call(endpoint: Any, asked: dict[str, Any], *, model: str = "m") -> Call:
    body = Body(json.dumps(asked).encode())
    counted = bool((asked.get("stream_options") or {}).get("include_usage"))
    return Call("call-1", endpoint, model, body, stream=bool(asked.get("stream")), include_usage=counted)


def ask(endpoint: str, asked: dict[str, Any], inner: Any = None) -> tuple[str, dict[str, Any]]:
    """The path and the body that the server is asked with."""
    sent = capabilities(endpoint, inner).adapter.request(a_call(endpoint, asked), TARGET)
    return sent.path, json.loads(sent.body)


def answer(endpoint: str, asked: dict[str, Any], said: dict[str, Any] | bytes, inner: Any = None) -> Any:
    """A whole answer of the server's, as the client gets it."""
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return json.loads(capabilities(endpoint, inner).adapter.reply(a_call(endpoint, asked), body).body)


def stream(endpoint: str, asked: dict[str, Any], blocks: Iterable[bytes], inner: Any = None) -> Streamed:
    """A stream of the server's, as the client gets it from the gateway; a closed connection ends it."""
    call = a_call(endpoint, asked)
    reader = reader_for(call, capabilities(endpoint, inner), "text/event-stream", LIMITS, AnswerMemory(10**9))
    chunks = [chunk for block in blocks if (chunk := reader.feed(block))]
    if (last := reader.end(None)) is not None:
        chunks.append(last)
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage), None)
    return Streamed(b"".join(chunk.data for chunk in chunks), usage, reader.failure, reader.done)


def read(data: bytes) -> Iterator[tuple[str, Any]]:
    """Names and values of a stream's events; comments are left out."""
    splitter = sse.Splitter()
    for event in splitter.feed(data):
        lines = event.decode().splitlines()
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
        value = sse.data(event)
        if value:
            yield (names or [""])[0], value.decode() if value == b"[DONE]" else json.loads(value)
    assert not splitter.rest


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat's stream; without a delta one that has no choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    extra = {name: more.pop(name) for name in ("stop_reason", "logprobs") if name in more}
    value = {"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "served/name", **more}
    value["choices"] = [] if delta is None else [{**choice, **extra}]
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def call_piece(index: int, *, id: str | None = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    """A delta with a piece of a tool call."""
    function = {**({"name": name} if name else {}), "arguments": arguments}
    piece: dict[str, Any] = {"index": index, "function": function}
    return {"tool_calls": [piece | ({"id": id, "type": "function"} if id else {})]}


USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 8,
    "total_tokens": 38,
    "prompt_tokens_details": {"cached_tokens": 10},
}
DONE = b"data: [DONE]\n\n"


def chat(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    """A chat's whole answer."""
    extra = {name: more.pop(name) for name in ("stop_reason", "logprobs") if name in more}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **extra}
    known = {"id": "c", "object": "chat.completion", "created": 7, "model": "served/name", "usage": USAGE}
    return {**known, "choices": [choice], **more}


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The bytes in blocks that end at these places."""
    ends = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]
