"""A TCP link that an operator can spoil while it runs: late, narrow, cut, reset, or swallowing everything."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Final

PIECE: Final = 65536
"""Bytes read at once."""
UNDER_WAY: Final = 1024**2
"""Bytes that wait in one direction of a connection; beyond it the sender has to wait, as on a real link."""


class Link:
    """A proxy to one address. Changes hold for open and new connections; all of it belongs to one loop."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.delay = 0.0
        """Seconds that each piece arrives later, in each direction; nothing is reordered, throughput stays."""
        self.bandwidth = 0.0
        """Bytes a second of each direction of each connection; 0: unbounded."""
        self.black_hole = False
        """Take everything and pass nothing on; what was swallowed stays lost."""
        self.cut_after: int | None = None
        """Close every connection once so many more bytes, of all together, have come through from the target."""
        self.carried = [0, 0]
        """Bytes passed on, to the target and from it."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._tasks)

    async def open(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port. Raises `OSError`."""
        self._server = await asyncio.start_server(self._joined, host, port)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    def reset(self) -> None:
        """Reset every connection that is open now; new ones work."""
        for writer in list(self._writers):
            _reset(writer)

    def restore(self) -> None:
        """Back to normal. Connections that lost bytes are reset: they could never be right again."""
        lossy = self.black_hole
        self.delay, self.bandwidth, self.black_hole, self.cut_after = 0.0, 0.0, False, None
        if lossy:
            self.reset()

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which the sockets are closed

    def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            upstream_reader, upstream = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            self._writers.discard(writer)
            return
        self._writers.add(upstream)
        ways = [
            asyncio.ensure_future(self._carry(reader, upstream, 0)),
            asyncio.ensure_future(self._carry(upstream_reader, writer, 1)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, upstream):
                end.transport.abort()
                self._writers.discard(end)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int) -> None:
        """One direction, until it ends. Late pieces wait in a queue, so that a delay is no throttle."""
        pipe = _Pipe()
        delivery = asyncio.ensure_future(self._deliver(pipe, writer, way))
        clock = asyncio.get_running_loop().time
        try:
            with suppress(OSError):
                while piece := await reader.read(PIECE):
                    if self.black_hole:
                        continue
                    if way == 1 and self.cut_after is not None:
                        piece, self.cut_after = piece[: self.cut_after], self.cut_after - len(piece)
                        if self.cut_after <= 0:
                            break
                    await pipe.put(clock() + self.delay, piece)
            await pipe.put(clock() + self.delay, b"")
            await delivery
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)

    async def _deliver(self, pipe: _Pipe, writer: asyncio.StreamWriter, way: int) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, piece = await pipe.get()
            if (pause := due - clock()) > 0:
                await asyncio.sleep(pause)
            if not piece:
                return
            while piece:
                size = max(1, min(len(piece), int(self.bandwidth / 10))) if self.bandwidth else len(piece)
                if self.bandwidth:
                    await asyncio.sleep(size / self.bandwidth)
                writer.write(piece[:size])
                await writer.drain()
                self.carried[way] += size
                piece = piece[size:]


def _reset(writer: asyncio.StreamWriter) -> None:
    opened: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Pipe:
    """Pieces on their way, each with the time at which it is due."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = asyncio.Event()

    async def put(self, due: float, piece: bytes) -> None:
        while self._size > UNDER_WAY:
            await self._change()
        self._waiting.append((due, piece))
        self._size += len(piece)
        self._changed.set()

    async def get(self) -> tuple[float, bytes]:
        while not self._waiting:
            await self._change()
        due, piece = self._waiting.popleft()
        self._size -= len(piece)
        self._changed.set()
        return due, piece

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
