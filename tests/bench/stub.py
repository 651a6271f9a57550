"""A stub OpenAI server whose answers are rendered before the first call, so that it costs next to nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import cast

import uvloop

MODEL = "bench-model"
CONTENT_EVENTS = 64
ANSWER_ID = "chatcmpl-892b39397c47b0a3"
CREATED = 1_795_346_715
PROMPT_TOKENS = 214
WORDS = (" the", " replica", " with", " most", " free", " memory", " answers", " first")

LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
STREAMS = re.compile(rb'"stream"\s*:\s*true')
WANTS_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
LAST_CHUNK = b"0\r\n\r\n"


def answer(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nserver: stub\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def usage(completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion_tokens,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
    }


def completion() -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(WORDS) * 16, "tool_calls": []},
        "logprobs": None,
        "finish_reason": "stop",
    }
    payload = {
        "id": ANSWER_ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": [choice],
        "usage": usage(16 * len(WORDS)),
    }
    return json.dumps(payload, separators=(",", ":")).encode()


def event(choices: list[dict[str, object]], **more: object) -> bytes:
    payload = {
        "id": ANSWER_ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": MODEL,
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def delta(content: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish_reason}


def stream_events(with_usage: bool) -> Iterator[bytes]:
    """The content events, the finish event, the usage event if asked for, and the end mark."""
    yield event([delta({"role": "assistant", "content": WORDS[0]})])
    for position in range(1, CONTENT_EVENTS):
        yield event([delta({"content": WORDS[position % len(WORDS)]})])
    yield event([delta({}, "stop")])
    if with_usage:
        yield event([], usage=usage(CONTENT_EVENTS))
    yield b"data: [DONE]\n\n"


def stream_writes(with_usage: bool) -> list[bytes]:
    """The writes of a streamed answer: the head, one HTTP chunk an event as model servers send them, the last chunk."""
    head = (
        b"HTTP/1.1 200 OK\r\nserver: stub\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    chunks = [b"%x\r\n%b\r\n" % (len(each), each) for each in stream_events(with_usage)]
    return [head, *chunks, LAST_CHUNK]


COMPLETION = answer("200 OK", completion())
WRITES = {with_usage: stream_writes(with_usage) for with_usage in (False, True)}
BURST = {with_usage: b"".join(writes) for with_usage, writes in WRITES.items()}
MODELS = answer(
    "200 OK", json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "created": CREATED}]}).encode()
)
HEALTHY = answer("200 OK", b"{}")
NOT_FOUND = answer("404 Not Found", b'{"detail":"Not Found"}')


class Upstream(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._pending = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (exchange := self._take()) is not None:
            self._reply(*exchange)

    def _take(self) -> tuple[bytes, bytes] | None:
        """Remove one complete request from what has arrived: its head and its body."""
        head_end = self._pending.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        head = bytes(self._pending[:head_end])
        start = head_end + 4
        if CHUNKED.search(head):
            last = self._pending.find(LAST_CHUNK, start)
            end = last + len(LAST_CHUNK) if last >= 0 else len(self._pending) + 1
        else:
            length = LENGTH.search(head)
            end = start + int(length[1]) if length else start
        if len(self._pending) < end:
            return None
        body = bytes(self._pending[start:end])
        del self._pending[:end]
        return head, body

    def _reply(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.endswith(b"/chat/completions"):
            self._complete(body)
        elif path.endswith(b"/models"):
            self._transport.write(MODELS)
        else:
            self._transport.write(HEALTHY if path == b"/health" else NOT_FOUND)

    def _complete(self, body: bytes) -> None:
        if not STREAMS.search(body):
            self._transport.write(COMPLETION)
        elif not self._gap:
            self._transport.write(BURST[bool(WANTS_USAGE.search(body))])
        else:
            head, first, *rest = WRITES[bool(WANTS_USAGE.search(body))]
            self._trickle(chain([head + first], rest[:-2], [rest[-2] + rest[-1]]))

    def _trickle(self, writes: Iterator[bytes]) -> None:
        data = next(writes, None)
        if data is not None and not self._transport.is_closing():
            self._transport.write(data)
            asyncio.get_running_loop().call_later(self._gap, self._trickle, writes)


async def serve(port: int, gap: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(gap), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap-ms", type=float, default=0, help="one event a write, this far apart; 0: one burst")
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.port, chosen.gap_ms / 1000))


if __name__ == "__main__":
    main()
