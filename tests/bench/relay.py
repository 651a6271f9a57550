"""A bare relay: what a hop costs in this language. `STUB_PORT=9100 python relay.py 8080`

It copies a call to the stub and the answer back, and does nothing else: no errors, no time-outs, no cancellation. Its
figures are the floor that the gateway's are compared with, and what ratios are formed with, for it has the same event
loop and parser.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import cast

import httptools
import uvloop

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


class Client(asyncio.Protocol):
    """A connection from a client, with at most one call on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        self._task = asyncio.get_running_loop().create_task(self._serve(body))

    async def _serve(self, body: bytes) -> None:
        write = self.transport.write
        if self._parser.get_method() != b"POST":
            write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            return
        upstream = idle.pop() if idle else await _connected()
        upstream.ask(body)
        data = await upstream.read()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: " + upstream.content_type
        if upstream.ended:
            write(head + b"\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        else:
            write(head + b"\r\ntransfer-encoding: chunked\r\n\r\n" + _chunk(data))
            while not upstream.ended:
                write(_chunk(await upstream.read()))
            write(b"0\r\n\r\n")
        idle.append(upstream)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


async def _connected() -> Upstream:
    _, upstream = await asyncio.get_running_loop().create_connection(Upstream, "127.0.0.1", PORT)
    return upstream


async def main(port: int) -> None:
    """Serve until this is ended."""
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
