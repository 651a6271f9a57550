"""A TCP link on loopback that a test can spoil: late, cut after so many bytes, reset, or swallowing everything."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Link:
    """A proxy in a thread of its own to a port on loopback; changes hold for old and new connections."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._delay = 0.0
        self._swallows = False
        self._left: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._joined, "127.0.0.1", 0), self._loop)
        self._server = started.result(5)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def delay(self, seconds: float) -> None:
        """Each piece arrives this much later, in each direction; nothing is reordered, throughput stays."""
        self._delay = seconds

    def cut_after(self, size: int) -> None:
        """Close every connection once so many more bytes have come through from the server."""
        self._left = size

    def black_hole(self) -> None:
        """Take everything and pass nothing on; what was swallowed stays lost."""
        self._swallows = True

    def reset(self) -> None:
        """Reset every connection that is open now; new ones work."""

        async def abort() -> None:
            for writer in list(self._writers):
                opened: socket.socket = writer.get_extra_info("socket")
                with suppress(OSError):
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(abort(), self._loop).result(5)

    def restore(self) -> None:
        """Back to normal. Connections that lost bytes are reset: they could never be right again."""
        lossy = self._swallows
        self._delay, self._swallows, self._left = 0.0, False, None
        if lossy:
            self.reset()

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(upstream)
        ways = [
            asyncio.ensure_future(self._carry(reader, upstream, counted=False)),
            asyncio.ensure_future(self._carry(upstream_reader, writer, counted=True)),
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

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        """One direction, until it ends. Late pieces wait in a queue, so that a delay is no throttle."""
        waiting: deque[tuple[float, bytes]] = deque()
        more = asyncio.Event()

        async def deliver() -> None:
            while True:
                while not waiting:
                    more.clear()
                    await more.wait()
                due, piece = waiting.popleft()
                if (pause := due - self._loop.time()) > 0:
                    await asyncio.sleep(pause)
                if not piece:
                    return
                writer.write(piece)
                await writer.drain()

        delivery = asyncio.ensure_future(deliver())
        try:
            with suppress(OSError):
                while piece := await reader.read(65536):
                    if self._swallows:
                        continue
                    if counted and self._left is not None:
                        piece, self._left = piece[: self._left], self._left - len(piece)
                        if self._left <= 0:
                            break
                    waiting.append((self._loop.time() + self._delay, piece))
                    more.set()
            waiting.append((self._loop.time() + self._delay, b""))
            more.set()
            await delivery
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)


@contextmanager
def link(target: int) -> Iterator[Link]:
    """A link to this port for as long as the block lasts."""
    made = Link(target)
    try:
        yield made
    finally:
        made.stop()
