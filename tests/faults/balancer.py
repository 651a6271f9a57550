"""What stands before several gateways: keep-alive connections, a health check, and no second try for a call."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import suppress

CHECK_SECONDS = 0.25
CALL_SECONDS = 30


class Balancer:
    """Sends calls by turns to the gateways that were ready when they were last asked.

    An idle connection that its gateway has closed is not used again, as with every HTTP client; whatever happens to a
    call after it was sent is its end, counted in `seen`.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        """How calls ended: "whole", or what went wrong."""
        self.connections = 0
        self._idle: dict[int, list[Connection]] = {}
        self._ready: set[int] = set()
        self._turns = itertools.count()
        self._checks: dict[int, asyncio.Task[None]] = {}

    def add(self, port: int) -> None:
        """Send calls there, once it is ready."""
        self._idle[port] = []
        self._checks[port] = asyncio.create_task(self._check(port))

    @property
    def ready(self) -> frozenset[int]:
        """Where calls go now."""
        return frozenset(self._ready)

    async def remove(self, port: int) -> None:
        """It is gone for good."""
        self._checks[port].cancel()
        await asyncio.wait([self._checks.pop(port)])
        self._ready.discard(port)
        for connection in self._idle.pop(port):
            connection.close()

    async def close(self) -> None:
        for port in list(self._checks):
            await self.remove(port)

    async def call(self, raw: bytes) -> None:
        """One call, whatever becomes of it."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                self.seen[await self._call(raw)] += 1
        except TimeoutError:
            self.seen["no end"] += 1

    async def _call(self, raw: bytes) -> str:
        ready = sorted(self._ready)
        if not ready:
            return "no gateway is ready"
        port = ready[next(self._turns) % len(ready)]
        try:
            connection = await self._connection(port)
        except OSError:
            return "refused"
        try:
            said = await connection.exchange(raw)
        except (OSError, asyncio.IncompleteReadError):
            return "cut" if connection.answering else "closed before the answer"
        if connection.reusable and port in self._idle:
            self._idle[port].append(connection)
        else:
            connection.close()
        return said

    async def _connection(self, port: int) -> Connection:
        idle = self._idle.get(port, [])
        while idle:
            connection = idle.pop()
            if connection.alive:
                return connection
            connection.close()
        self.connections += 1
        return Connection(*await asyncio.open_connection("127.0.0.1", port))

    async def _check(self, port: int) -> None:
        while True:
            (self._ready.add if await _is_ready(port) else self._ready.discard)(port)
            await asyncio.sleep(CHECK_SECONDS)


class Connection:
    """To one gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.answering = self.reusable = False

    @property
    def alive(self) -> bool:
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def exchange(self, raw: bytes) -> str:
        """Send a request and read its answer to the end, as its framing tells it: "whole", or what is wrong with it."""
        self.answering = False
        self._writer.write(raw)
        head = await self._reader.readuntil(b"\r\n\r\n")
        self.answering = True
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.reusable = headers.get("connection") != "close"
        if (length := headers.get("content-length")) is not None:
            body = await self._reader.readexactly(int(length))
        else:
            body = await self._reader.readuntil(b"\r\n0\r\n\r\n")
        if status.split()[1] != "200":
            return f"status {status.split()[1]}"
        if "event-stream" in headers.get("content-type", "") and b"data: [DONE]\n\n" not in body:
            return "ended without [DONE]"
        return "whole"

    def close(self) -> None:
        self._writer.close()


async def _is_ready(port: int) -> bool:
    with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(2):
            connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
            try:
                return await connection.exchange(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n") == "whole"
            finally:
                connection.close()
    return False
