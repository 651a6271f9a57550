"""A client's connection without a socket: what is written is kept, what a client sends is given to it."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.listener import Handle, Listener
from gateway.http.request import Request


class Kept(asyncio.Transport):
    """A transport that keeps what is written; `unread` bytes of it count as not taken."""

    def __init__(self, peer: tuple[str, int] | None = ("127.0.0.1", 40000)) -> None:
        super().__init__({"peername": peer, "sockname": ("127.0.0.1", 8080)})
        self.written = bytearray()
        self.unread = 0
        self.paused = self.closed = self.aborted = self.ended = False

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


async def nothing(connection: Connection, request: Request, answer: Answer) -> None:
    """Serves by saying nothing."""


def connected(handle: Handle = nothing, peer: tuple[str, int] | None = ("127.0.0.1", 40000)) -> Connection:
    """A connection that has just been made; its transport is a `Kept`."""
    connection = Connection(Listener(handle, 10.0))
    connection.connection_made(Kept(peer))
    return connection


def exchange(request: Request, peer: tuple[str, int] | None = ("127.0.0.1", 40000)) -> tuple[Connection, Answer]:
    """A connection on which this request is being served by the task that asks."""
    connection = connected(peer=peer)
    connection.request, connection.task = request, asyncio.current_task()
    return connection, Answer(connection, request)
