"""One client's connection: HTTP/1.1 in, one request at a time, and word when the client leaves.

Whoever serves a request reads the rest of its body with `more` and writes an `Answer`. What comes behind it meanwhile
waits, up to a bound, so that a client's leaving is seen.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from gateway.core.errors import GatewayError, ReaderTooSlow
from gateway.http.answer import Answer
from gateway.http.errors import render
from gateway.http.parser import RequestParser
from gateway.http.request import Request, new_id

if TYPE_CHECKING:
    from gateway.http.listener import Listener

log = logging.getLogger("trunkline.http")

IDLE_SECONDS: Final = 75.0
"""A connection without a request is closed after so long; clients and load balancers mostly let go after 60."""
LINGER_SECONDS: Final = 2.0
"""How long a client may go on to send what nobody reads, so that it can still read why."""
AHEAD_BYTES: Final = 64 * 1024
"""Of what is sent behind a request that is being served. Beyond it nothing is read, nor the client's leaving seen."""
PIECE_BYTES: Final = 16 * 1024
"""How much is parsed at once: requests that stand behind one another in it are all held in their memory."""
UNREAD_BYTES: Final = 256 * 1024
"""Of a body whose reader is busy."""
UNSENT_BYTES: Final = 32 * 1024
"""Of an answer, beyond what the kernel takes: more than that is too much to hold for a client that does not read."""
UNSENT_SECONDS: Final = 60.0
"""For a client to take the rest of an answer whose call is over, besides what it takes at the rate below."""
UNSENT_BYTES_PER_SECOND: Final = 32 * 1024
_RESET: Final = struct.pack("ii", 1, 0)


class Connection(asyncio.Protocol):
    """What a `Listener` makes for each client."""

    __slots__ = (
        "_ahead",
        "_body",
        "_drained",
        "_lingers",
        "_parser",
        "_patience",
        "_paused",
        "_unsent",
        "_until",
        "due",
        "is_full",
        "listener",
        "loop",
        "lost",
        "on_lost",
        "peer",
        "request",
        "task",
        "transport",
    )

    def __init__(self, listener: Listener) -> None:
        self.listener, self.loop = listener, listener.loop
        self.transport: asyncio.Transport
        self.peer: tuple[str, int] | None = None
        """The client's address and port; None behind a Unix socket."""
        self.request: Request | None = None
        """The one that is being served."""
        self.task: asyncio.Task[None] | None = None
        """What serves it."""
        self.on_lost: Callable[[], None] | None = None
        """Called once when the client leaves while its request is being served."""
        self.lost = False
        """The connection has ended."""
        self.is_full = False
        """More was written than the client takes."""
        self.due = math.inf
        """When what is waited for is late, by the loop's clock."""
        self._parser = RequestParser()
        self._ahead = bytearray()
        """What came behind the request that is being served, and was not parsed."""
        self._body: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._unsent, self._patience = 0, 0.0
        """What the client had left to take when that was last looked at, and how many seconds it is given."""
        self._paused = self._lingers = False
        self._until = 0.0
        """By when a client that is waited for must have taken its answer."""

    # The loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        self.transport.set_write_buffer_limits(UNSENT_BYTES)
        self.due = self.loop.time() + self.listener.head_seconds
        if not self.listener.add(self):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        request = self.request
        rest = self._feed(data) if request is None or not request.is_whole else data
        if rest:
            self._ahead += rest
            if len(self._ahead) > AHEAD_BYTES:
                self._pause()
        if request is None:
            self._go_on()

    def eof_received(self) -> None:
        """A client that will send no more is taken to have left; returning nothing closes."""

    def connection_lost(self, error: Exception | None) -> None:
        self.lost, self.due = True, math.inf
        self.listener.forget(self)
        self._parser.close()
        self._ahead.clear()
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()
        _wake(self._body)
        _wake(self._drained)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        _wake(self._drained)

    # Who serves a request calls these.

    async def more(self, seconds: float) -> bytes:
        """What has come of the body since the last time; empty: it has ended.

        Raises `TimeoutError` after so many seconds of silence, `BadFraming` for a body that cannot be read,
        `ConnectionResetError` when the client has left.
        """
        request = self.request
        assert request is not None
        while not request.pieces and not request.is_whole:
            if self._parser.broken is not None:
                raise self._parser.broken
            if self.lost:
                raise ConnectionResetError("the client has left")
            if request.expects:
                request.expects = False
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._body, self.due = self.loop.create_future(), self.loop.time() + seconds
            try:
                await self._body
            finally:
                self._body, self.due = None, math.inf
        data = request.take()
        if len(self._ahead) <= AHEAD_BYTES:
            self._resume()
        return data

    async def drained(self, seconds: float) -> None:
        """Wait until the client has taken what was too much to hold.

        Returns also when the client has left. Raises `ReaderTooSlow` if it takes nothing for so many seconds; it has
        been cut off then.
        """
        if not self.is_full or self.lost:
            return
        self._drained, self.due = self.loop.create_future(), self.loop.time() + seconds
        self._unsent, self._patience = self.transport.get_write_buffer_size(), seconds
        try:
            await self._drained
        finally:
            self._drained, self.due = None, math.inf

    # The listener calls these.

    @property
    def is_idle(self) -> bool:
        """No request is being served, and none is coming."""
        return self.task is None and self._parser.coming is None and not self._parser.requests

    def late(self) -> None:
        """`due` has passed."""
        self.due = math.inf
        if (body := self._body) is not None:
            if not body.done():
                body.set_exception(TimeoutError())
        elif (drained := self._drained) is not None:
            unsent = self.transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent, self.due = unsent, self.loop.time() + self._patience
            elif not drained.done():
                drained.set_exception(ReaderTooSlow())
                self.on_lost = None  # it did not leave, and whoever serves it has just been told
                self.reset()
        elif self.transport.get_write_buffer_size():
            if self.loop.time() < self._until:
                self.due = min(self.loop.time() + LINGER_SECONDS, self._until)
            else:
                self.reset()
        else:
            self.transport.abort()

    def close(self) -> None:
        """Close it once its client has taken all that was written."""
        self.due = self.loop.time() + UNSENT_SECONDS + self._seconds_of_unsent()
        self.transport.close()

    def reset(self) -> None:
        """End it at once, in a way that nobody takes for the end of an answer."""
        if self.lost:
            return
        with suppress(OSError, AttributeError):  # it was closed this moment
            descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=descriptor) as copy:
                copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _feed(self, data: bytes | bytearray) -> bytes | bytearray:
        """Read on to the end of a request, or little further; what is behind that is given back.

        Wakes who waits for more of the body that is being read.
        """
        parser, body, read = self._parser, self._body, PIECE_BYTES
        parser.feed(data[:read])
        while read < len(data):
            first = self.request or (parser.requests[0] if parser.requests else None)
            if first is not None and (isinstance(first, GatewayError) or first.is_whole):
                break
            parser.feed(data[read : read + PIECE_BYTES])
            read += PIECE_BYTES
        if parser.coming is not None and parser.coming.unread > UNREAD_BYTES:
            self._pause()
        if body is not None and not body.done():
            body.set_result(None)
        return data[read:]

    def _go_on(self) -> None:
        """Serve what is next, if it has come."""
        if self._ahead and not self._parser.requests:
            self._ahead = bytearray(self._feed(self._ahead))
        if not self._parser.requests:
            if self._parser.coming is not None:
                self._await_head()
            return
        request = self._parser.requests.popleft()
        if isinstance(request, GatewayError):
            self._refuse(request)
            return
        self.request, self.due = request, math.inf
        if self._ahead and not request.is_whole:
            self._ahead = bytearray(self._feed(self._ahead))
        self.task = self.loop.create_task(self._serve(request))

    def _await_head(self) -> None:
        """The head has begun to come, and must be there in time, however little of it comes at once."""
        if self.due > self.loop.time() + self.listener.head_seconds:
            self.due = self.loop.time() + self.listener.head_seconds

    async def _serve(self, request: Request) -> None:
        answer = Answer(self, request)
        try:
            await self.listener.handle(self, request, answer)
        except Exception as error:
            if not (self.lost and isinstance(error, ConnectionResetError)):  # `more` has said it
                log.exception("%s %s: a bug of ours", request.method, request.path)
        finally:
            self._served(request, answer)

    def _served(self, request: Request, answer: Answer) -> None:
        self.request = self.task = self.on_lost = None
        if self.lost:
            return
        if not answer.ended:
            self.reset()
        elif not request.is_whole:
            self._linger()
        elif not answer.keeps_alive:
            if self._ahead or self._paused:
                self._linger()
            else:
                self.close()
        else:
            self.due = self.loop.time() + IDLE_SECONDS + self._seconds_of_unsent()
            self._resume()
            self._go_on()
            if self.listener.refuses and self.is_idle:
                self.close()

    def _refuse(self, error: GatewayError) -> None:
        """Answer what could not be read, and read no more."""
        answer = Answer(self, Request())
        status, headers, body = render(error, new_id())
        answer.start(status, headers)
        answer.end(body)
        self._linger()

    def _linger(self) -> None:
        """Close for writing, and leave a client time to read what was said: with bytes unread a close is a reset."""
        self._lingers = True
        self._ahead.clear()
        self.due = self.loop.time() + LINGER_SECONDS
        self._until = self.loop.time() + UNSENT_SECONDS + self._seconds_of_unsent()
        self._resume()
        with suppress(OSError, RuntimeError):
            self.transport.write_eof()

    def _seconds_of_unsent(self) -> float:
        return self.transport.get_write_buffer_size() / UNSENT_BYTES_PER_SECOND

    def _pause(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
