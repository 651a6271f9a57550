"""A light client: one stream on one connection, of which it looks for the first word and the end."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

FIRST = re.compile(rb'"content": ?"[^"]')


class Stream(asyncio.Protocol):
    """`first` is when the first word came, on the loop's clock; `status` 0: the connection ended without an answer."""

    def __init__(self, request: bytes) -> None:
        self._request, self._tail = request, b""
        self._loop = asyncio.get_running_loop()
        self.over = self._loop.create_future()
        self.status, self.first, self.whole = 0, 0.0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.status and data.startswith(b"HTTP/1.1 "):
            self.status = int(data[9:12])
        seen = self._tail + data
        if not self.first and FIRST.search(seen):
            self.first = self._loop.time()
        if b"[DONE]" in seen or self.status != 200:
            self.whole = self.status == 200
            self._transport.close()
        self._tail = seen[-200:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def leave(self) -> None:
        self._transport.abort()


async def ask(port: int, secret: str, messages: list[dict[str, str]], tokens: int) -> Stream:
    """One call, to its end."""
    body: dict[str, Any] = {
        "model": "m",
        "messages": messages,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(lambda: Stream(head.encode() + raw), "127.0.0.1", port)
    try:
        await stream.over
    finally:
        stream.leave()
    return stream
