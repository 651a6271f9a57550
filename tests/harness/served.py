"""A listener in the test's own loop, and its clients, who send raw bytes over real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.listener import Handle, Listener
from gateway.http.request import Request
from gateway.process.sockets import bind

GET = b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /%b HTTP/1.1\r\nhost: x\r\n"


class Received(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self.writer.get_extra_info("socket")
        return found

    def send(self, data: bytes) -> None:
        if not self.writer.transport.is_closing():  # the other side was faster
            self.writer.write(data)

    async def drip(self, data: bytes) -> None:
        """Send it byte by byte, each in a packet of its own."""
        for byte in data:
            self.writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async def answer(self, *, bodyless: bool = False) -> Received:
        """The next answer; `bodyless` if it is one to HEAD. Without a length it is all that comes."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        status = int(lines[0].split(" ")[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        if bodyless or status in (100, 204, 304):
            return Received(status, headers, b"")
        if "content-length" in headers:
            return Received(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") != "chunked":
            return Received(status, headers, await self.rest())
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return Received(status, headers, body)

    async def rest(self) -> bytes:
        """All that comes until the other side closes. Raises `ConnectionResetError` if that is a reset."""
        return await self.reader.read()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Leave with a TCP reset."""
        with suppress(OSError, AttributeError):  # the other side was faster
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Served:
    """A listener and its clients."""

    def __init__(self, listener: Listener, port: int) -> None:
        self.listener, self.port = listener, port
        self.wires: list[Wire] = []

    async def connect(self, receive_bytes: int = 0) -> Wire:
        """Another client; `receive_bytes` bounds what its kernel takes before it reads."""
        client = socket.socket()
        client.setblocking(False)
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        except OSError:
            client.close()
            raise
        wire = Wire(*await asyncio.open_connection(sock=client, limit=2**16))
        self.wires.append(wire)
        return wire

    async def connection(self) -> Connection:
        """The only one there is."""
        await until(lambda: len(self.listener.connections) == 1)
        (connection,) = self.listener.connections
        return connection


@asynccontextmanager
async def serving(handle: Handle, head_seconds: float = 10.0) -> AsyncIterator[Served]:
    """Serve with `handle`; after the block nothing may be left of it."""
    (bound,) = bind("127.0.0.1", 0, 1)
    listener, port = Listener(handle, head_seconds), bound.getsockname()[1]
    before = asyncio.all_tasks()
    await listener.open(bound)
    assert open_sockets(port)
    served = Served(listener, port)
    try:
        yield served
    finally:
        for wire in served.wires:
            wire.close()
        await listener.close(5)
        await until(lambda: not listener.connections and asyncio.all_tasks() <= before)
        await until(lambda: not open_sockets(port))


def open_sockets(port: int) -> int:
    """How many sockets of this process have this port at their own end: others are of other tests' servers."""
    number = 0
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{each}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(each))) as found:
                    name = found.getsockname()
                    number += isinstance(name, tuple) and name[1] == port
    return number


async def until(found: Callable[[], object]) -> None:
    """Until it has come to pass; the test's own time-out says when it never will."""
    while not found():
        await asyncio.sleep(0.001)


async def echo(connection: Connection, request: Request, answer: Answer) -> None:
    """Answers with the method, the target and the body."""
    body = bytearray()
    while piece := await connection.more(5):
        body += piece
    body[:0] = f"{request.method} {request.target.decode()} ".encode()
    answer.start(200, [(b"content-length", b"%d" % len(body))])
    answer.end(bytes(body))


def kept(event: asyncio.Event, then: Handle = echo) -> Callable[[Connection, Request, Answer], Awaitable[None]]:
    """Serves once the event is set."""

    async def serve(connection: Connection, request: Request, answer: Answer) -> None:
        await event.wait()
        await then(connection, request, answer)

    return serve
