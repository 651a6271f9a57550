"""The far end of a connection, in the test's own hands and loop: it sends, stops, closes or resets when it is told."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any


class Peer(asyncio.Protocol):
    """One connection that was accepted."""

    def __init__(self, accepted: asyncio.Queue[Peer]) -> None:
        self._accepted = accepted
        self.received = bytearray()
        self.ended = asyncio.Event()
        self._arrived = asyncio.Event()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._accepted.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._arrived.set()

    async def until(self, mark: bytes) -> bytes:
        """Take what was received, up to and with `mark`, once that has come."""
        while (at := self.received.find(mark)) < 0:
            if self.ended.is_set():
                raise ConnectionResetError
            self._arrived.clear()
            await self._arrived.wait()
        taken = bytes(self.received[: at + len(mark)])
        del self.received[: at + len(mark)]
        return taken

    async def request(self) -> tuple[list[str], bytes]:
        """The lines of a request's head, and its body."""
        lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        size = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
        while len(self.received) < size:
            self._arrived.clear()
            await self._arrived.wait()
        body = bytes(self.received[:size])
        del self.received[:size]
        return lines, body

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def arrived(self) -> None:
        """Until all that was sent is in the other end's kernel, where a reset does not reach it any more."""
        opened = self.transport.get_extra_info("socket")
        while self.transport.get_write_buffer_size() or any(ioctl(opened.fileno(), TIOCOUTQ, bytes(4))):
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """After all that was sent."""
        self.transport.close()

    def reset(self) -> None:
        """With a TCP reset; what the other end has not read stays readable there."""
        opened = self.transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Listener:
    """Accepts connections, in turn."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self.peers: list[Peer] = []
        self.port = 0

    def make(self) -> Peer:
        peer = Peer(self.accepted)
        self.peers.append(peer)
        return peer

    async def peer(self) -> Peer:
        """The next connection."""
        async with asyncio.timeout(20):
            return await self.accepted.get()


@asynccontextmanager
async def listening(
    host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None, unix: str | None = None
) -> AsyncIterator[Listener]:
    """A listener on a free port of `host`, or on the unix socket at a path."""
    listener, loop = Listener(), asyncio.get_running_loop()
    if unix is not None:
        server = await loop.create_unix_server(listener.make, unix)
    else:
        server = await loop.create_server(listener.make, host, 0, ssl=tls)
        listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        for peer in listener.peers:
            if peer.transport is not None and not peer.ended.is_set():
                peer.transport.abort()
                await peer.ended.wait()
