"""A socket on which clients are served: their connections, and all that may come too late on them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Final, TypeAlias

from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request
from gateway.process.sockets import BACKLOG

Handle: TypeAlias = Callable[[Connection, Request, Answer], Awaitable[None]]
"""Serves one request."""

MOST_CONNECTIONS: Final = 16384
"""One more is closed at once."""
LOOK_SECONDS: Final = 0.25
"""Between two looks for what is late: cheaper than a timer for each thing that may be."""


class Listener:
    """Serves the clients of one socket, each request with `handle`.

    `head_seconds`: in how many a request's head must arrive.
    """

    def __init__(self, handle: Handle, head_seconds: float) -> None:
        self.handle, self.head_seconds = handle, head_seconds
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.refuses = False
        """No more are accepted."""
        self.date = _date()
        """A header of answers, as of now."""
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    async def open(self, bound: socket.socket) -> None:
        """Begin to accept."""
        self._look()
        self._server = await self.loop.create_server(self._connection, sock=bound, backlog=BACKLOG)

    def refuse(self) -> None:
        """Accept no more, and close connections on which nothing is going on, now or later."""
        self.refuses = True
        if self._server is not None:
            self._server.close()
        for connection in [each for each in self.connections if each.is_idle]:
            connection.close()

    async def close(self, seconds: float) -> None:
        """Wait so long until all clients have taken their answers, and cut off the others."""
        self.refuse()
        if self.connections:
            self._empty = self.loop.create_future()
            await asyncio.wait([self._empty], timeout=seconds)
        for connection in tuple(self.connections):
            connection.reset()
        if self._timer is not None:
            self._timer.cancel()

    def add(self, connection: Connection) -> bool:
        """It has been accepted; whether there is room for it."""
        self.connections.add(connection)
        return len(self.connections) <= MOST_CONNECTIONS

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        if not self.connections and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def _connection(self) -> Connection:
        return Connection(self)

    def _look(self) -> None:
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)  # first, whatever happens below
        now = self.loop.time()
        self.date = _date()
        for connection in [each for each in self.connections if each.due <= now]:
            connection.late()


def _date() -> bytes:
    return b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()
