"""HTTP/1.1 as the fake backend needs it: whole requests in, and answers that may break every rule, step by step."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

BODY_LIMIT: Final = 256 * 1024**2
"""Bytes of a request's body: more than any gateway lets through."""
HEAD_LIMIT: Final = 1024**2


class HttpRequest(Struct, frozen=True):
    """One request, whole; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's JSON. Raises `ValueError`."""
        return msgspec.json.decode(self.body)


class Connection(asyncio.Protocol):
    """One connection: requests, each answered by `serve`, one after the other, until either side closes."""

    def __init__(self, serve: Callable[[Connection, HttpRequest], Awaitable[None]], open: set[Connection]) -> None:
        self._serve, self._open = serve, open
        self._buffer = bytearray()
        self._arrived, self._writable, self._lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport
        self.busy = False
        """A request is being read or answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's says it is none
        self._open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        for event in (self._lost, self._arrived, self._writable, self._news):
            event.set()

    async def send(self, data: bytes) -> None:
        """Write, as fast as the peer reads. Raises `ConnectionResetError` once it has left."""
        if self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)
        await self._writable.wait()

    async def pause(self, seconds: float) -> None:
        """Raises `ConnectionResetError` as soon as the peer leaves."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stall()

    async def stall(self) -> None:
        """Until the peer leaves: always ends in `ConnectionResetError`."""
        await self._lost.wait()
        raise ConnectionResetError

    async def wait(self, news: asyncio.Event) -> None:
        """Until it is set. Raises `ConnectionResetError` as soon as the peer leaves."""
        self._news = news
        if not self._lost.is_set():
            await news.wait()
        if self._lost.is_set():
            raise ConnectionResetError

    def cut(self) -> None:
        """Close, once what was written is out."""
        self.transport.close()

    def reset(self) -> None:
        """Close with a TCP reset; what was written and is not out yet is lost."""
        opened: socket.socket = self.transport.get_extra_info("socket")
        with suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def finish(self) -> None:
        """Close and have everything of this connection end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.transport.abort()

    async def _run(self) -> None:
        try:
            while True:
                head = await self._until(b"\r\n\r\n", HEAD_LIMIT)
                self.busy = True
                await self._serve(self, await self._request(head))
                self.busy = False
        except (ConnectionError, ValueError):  # gone, or no HTTP: there is nobody to tell
            self.transport.close()

    async def _request(self, head: bytes) -> HttpRequest:
        line, *rest = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        pairs = (item.partition(":") for item in rest if item)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if headers.get("expect", "").lower() == "100-continue":
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = await self._chunked()
        else:
            body = await self._exactly(int(headers.get("content-length", "0")))
        return HttpRequest(method, path, headers, body)

    async def _chunked(self) -> bytes:
        pieces = []
        while size := int((await self._until(b"\r\n", HEAD_LIMIT)).partition(b";")[0], 16):
            pieces.append(await self._exactly(size))
            await self._until(b"\r\n", HEAD_LIMIT)
        await self._until(b"\r\n", HEAD_LIMIT)
        return b"".join(pieces)

    async def _until(self, mark: bytes, limit: int) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > limit:
                raise ValueError("a line without end")
            await self._more()
        return (await self._exactly(at + len(mark)))[: -len(mark)]

    async def _exactly(self, size: int) -> bytes:
        if not 0 <= size <= BODY_LIMIT:
            raise ValueError("a body without end")
        while len(self._buffer) < size:
            await self._more()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _more(self) -> None:
        self._arrived.clear()
        if self._lost.is_set():
            raise ConnectionResetError
        await self._arrived.wait()
