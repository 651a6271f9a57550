"""A target that has sent all it had is not blamed for the time that the client takes to read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest

from backends.api import DONE, Call, Target
from backends.body import Body
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from gateway.config import Timeouts
from gateway.upstream import AnswerLimits, Forwarder

IDLE = 0.05
WHOLE = b'{"choices":[]}'
END = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'


class Answer(httpx.AsyncByteStream):
    """All of an answer, at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


class Server(httpx.AsyncBaseTransport):
    """Answers every call alike."""

    def __init__(self, content_type: str, body: bytes) -> None:
        self._type, self._body = content_type, body

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": self._type}, stream=Answer(self._body))


@pytest.mark.parametrize(
    ("stream", "content_type", "body", "told"),
    [
        pytest.param(False, "application/json", WHOLE, WHOLE, id="whole"),
        pytest.param(True, "text/event-stream", END, END + DONE, id="stream that its connection's end ended"),
    ],
)
async def test_the_last_piece_may_be_read_for_longer_than_the_target_may_be_silent(
    stream: bool, content_type: str, body: bytes, told: bytes
) -> None:
    call = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'), stream=stream)
    capabilities = Capabilities.of(OpenAI())
    forwarder = Forwarder(AnswerLimits(1024, 1024), Server(content_type, body))
    read = b""
    async with (
        forwarder.forward(call, Target("t", "http://t"), capabilities, Timeouts(idle=IDLE), {}) as upstream,
        aclosing(upstream.chunks()) as chunks,  # type: ignore[type-var] # they are generators
    ):
        async for chunk in chunks:
            if chunk.done:
                await asyncio.sleep(4 * IDLE)
            read += chunk.data
    assert read == told
