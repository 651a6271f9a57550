"""A bare relay: what a hop costs in this server and this language. `STUB_PORT=9100 granian --interface asgi relay:app`

It copies a call to the stub and the answer back, and does nothing else: no errors, no time-outs, no cancellation. Its
figures are the floor that the gateway's are compared with, and what ratios are formed with, for it runs on the same
server, loop and parser.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

import httptools

PORT = int(os.environ.get("STUB_PORT", "0"))
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: stub\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


class Upstream(asyncio.Protocol):
    """A connection to the stub with at most one call on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._waiting: asyncio.Future[None] | None = None
        self.content_type = b""
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, body: bytes) -> None:
        """Send the call; `read` then gives the answer."""
        self._parser = httptools.HttpResponseParser(self)
        self.ended = False
        self.transport.write(HEAD % len(body) + body)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if (waiting := self._waiting) is not None and (self._pieces or self.ended):
            self._waiting = None
            waiting.set_result(None)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self.ended = True

    async def read(self) -> bytes:
        """What has come since the last time, as one piece."""
        if not self._pieces and not self.ended:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


idle: list[Upstream] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    if scope["type"] != "http":
        return
    body = await _body(receive)
    if scope["method"] != "POST":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    upstream = idle.pop() if idle else await _connected()
    upstream.ask(body)
    data = await upstream.read()
    headers = [(b"content-type", upstream.content_type)]
    if upstream.ended:
        headers.append((b"content-length", b"%d" % len(data)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while not upstream.ended:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        data = await upstream.read()
    await send({"type": "http.response.body", "body": data})
    idle.append(upstream)


async def _body(receive: Any) -> bytes:
    message = await receive()
    pieces = [message.get("body", b"")]
    while message.get("more_body"):
        message = await receive()
        pieces.append(message.get("body", b""))
    return b"".join(pieces)


async def _connected() -> Upstream:
    _, upstream = await asyncio.get_running_loop().create_connection(Upstream, "127.0.0.1", PORT)
    return upstream
