"""One connection to a target, and the answer that comes over it: what was read at once is handed on as one piece."""

from __future__ import annotations

import asyncio
import math
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gateway.core.errors import Disconnected, UpstreamError
from gateway.upstream.http1 import Answer

if TYPE_CHECKING:
    from gateway.upstream.origin import Origin
    from gateway.upstream.pool import Pool

HELD_BYTES: Final = 64 * 1024
"""Of an answer that nobody takes away: with so many nothing more is read from its connection."""
JOINED_BYTES: Final = 64 * 1024
"""Bodies up to here leave in one write with their head; larger ones are not copied."""


class Response(Answer):
    """An answer as its caller reads it. It ends with `release`, always, whatever came of it.

    `status`, `headers` and `complete` are as in `Answer`.
    """

    connection: Connection | None = None
    """What it comes over; None: it was released."""
    _waiter: asyncio.Future[None] | None = None
    _failure: UpstreamError | None = None
    limit: float | None = None
    """The deadline, in the loop's time."""
    call = False
    """It answers a call, not a question of ours."""
    heard_at = -math.inf
    """When output of it last came, in the loop's time; who reads it says so."""
    _tail: asyncio.TimerHandle | None = None
    """Its reader has all that it wants; what is left is the end of the message."""

    @property
    def begun(self) -> bool:
        """Its head has come, or it is known that none will."""
        return bool(self.status) or self._failure is not None

    @property
    def ended(self) -> bool:
        """The message has ended well, and all of it has been read: `read` would return nothing."""
        return self.complete and not self.pieces

    @property
    def waited_for(self) -> bool:
        """Somebody reads it, or its head, and all that has come was taken."""
        return self._waiter is not None

    def deadline(self, moment: float | None) -> None:
        """By when, in the loop's time, the next bytes must have come; None: whenever they come.

        It counts while `read` waits, and stays until it is moved. Moving it costs nothing.
        """
        self.limit = moment
        if self._waiter is not None and moment is not None and self.connection is not None:
            self.connection.watch(moment)

    async def read(self) -> bytes:
        """What has come of the body since it was last called, as one piece; nothing: the message has ended well.

        Raises `Disconnected`, which says what the operating system did, once all that came before the break was read,
        and each time from then on; `TimeoutError` when nothing has come until the deadline.
        """
        while not self.pieces:
            if self.complete:
                return b""
            if self._failure is not None:
                raise self._failure
            if self.connection is None:
                raise Disconnected("the answer was given up")
            if self.connection.paused:  # not before: whoever still has the last piece would be given another to hold
                self.connection.resume()
            try:
                await self._expect(self.connection)
            finally:
                self._waiter = None
        pieces, self.held = self.pieces, 0
        piece = pieces.pop() if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return piece

    async def head(self) -> None:
        """Wait until the head has come. Raises `BadReply`, `Disconnected`, `TimeoutError`."""
        while not self.status:
            if self._failure is not None:
                raise self._failure
            assert self.connection is not None
            try:
                await self._expect(self.connection)
            finally:
                self._waiter = None

    def release(self, tail: float = 0.0) -> None:
        """Let go of the connection: it serves again if the message is complete, else it is closed, at once or, where
        nothing but the message's end is due, if that has not come in `tail` seconds."""
        connection = self.connection
        if connection is None:
            return
        if self._tail is not None:
            self._tail.cancel()
            self._tail = None
        if tail and not self.complete and self._failure is None:
            self._tail = connection.loop.call_later(tail, self.release)
            connection.resume()
            return
        self.connection = None
        connection.finish(self)

    def fail(self, failure: UpstreamError) -> None:
        """Nothing more comes; the first failure is the one that is told."""
        if self._failure is None and not self.complete:
            self._failure = failure
        self.wake()

    def wake(self) -> None:
        """Let the reader look again; without one, the message may have come to its end."""
        if self._tail is not None:
            self.release()
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _expect(self, connection: Connection) -> asyncio.Future[None]:
        """What is done when there is something to look at."""
        waiter = self._waiter = connection.loop.create_future()
        if self.limit is not None and self.limit < connection.watched:
            connection.watch(self.limit)
        return waiter

    def late(self, now: float) -> float | None:
        """Let the reader know if its deadline is over; when to look again, if ever."""
        if self._waiter is None or self.limit is None:
            return None  # the next wait sees to it
        if now < self.limit:
            return self.limit
        if not self._waiter.done():
            self._waiter.set_exception(TimeoutError("nothing came in time"))
        return None


class Connection(asyncio.Protocol):
    """One connection: a request out, its answer in, then the next. Made by the pool."""

    __slots__ = (
        "_pool",
        "_response",
        "_timer",
        "_transport",
        "_unsent",
        "ended",
        "idle_until",
        "loop",
        "made_at",
        "origin",
        "paused",
        "socket",
        "watched",
    )

    def __init__(self, origin: Origin, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.origin, self.loop, self._pool = origin, loop, pool
        self.made_at = loop.time()
        self.idle_until = 0.0
        """Until when it may wait for another request, in the loop's time."""
        self.ended = False
        """It takes no request any more."""
        self.socket: socket.socket | None = None
        """Its own, only to look at: the transport reads and writes it."""
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._unsent: asyncio.Future[None] | None = None
        """Done when what was written has mostly left; None: little waits to leave."""
        self._timer: asyncio.TimerHandle | None = None
        """One for all its answers: a call that has its answer in time never makes one."""
        self.watched = math.inf
        """When that looks, in the loop's time."""
        self.paused = False
        """Nothing is read from it, because what has come was not taken away."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's is no asyncio.Transport
        if self.ended:  # given up while it was made
            transport.abort()  # type: ignore[attr-defined]

    @property
    def call(self) -> Response | None:
        """The answer to a call that comes over it now."""
        response = self._response
        return response if response is not None and response.call else None

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nobody has asked
            self.abort()
            return
        try:
            response.feed(data)
        except UpstreamError as failure:
            response.fail(failure)
            self.abort()
        if response.held >= HELD_BYTES and not response.complete:
            self._pause()
        waiter = response._waiter  # as `wake`
        if waiter is None:
            response.wake()
        elif not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        self._unsent = self.loop.create_future()

    def resume_writing(self) -> None:
        unsent, self._unsent = self._unsent, None
        if unsent is not None and not unsent.done():
            unsent.set_result(None)

    def eof_received(self) -> None:
        self.ended = True
        if (response := self._response) is not None:
            try:
                response.end()
            except UpstreamError as failure:
                response.fail(failure)
            else:
                response.wake()

    def watch(self, moment: float) -> None:
        """Look at the deadline of the answer at hand then, if not before."""
        if moment < self.watched and not self.ended:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self.watched = self.loop.call_at(moment, self._look), moment

    def _look(self) -> None:
        self._timer, self.watched = None, math.inf
        again = None if self._response is None else self._response.late(self.loop.time())
        if again is not None:
            self.watch(again)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pool.closed(self)
        self.resume_writing()
        if (response := self._response) is not None:
            response.reusable = False
            response.fail(Disconnected(response.missing() if exc is None else spoken(exc)))

    def send(self, response: Response, head: bytes, body: bytes) -> None:
        """Begin an exchange: what comes from here on belongs to `response`."""
        assert self._transport is not None
        self._response, response.connection = response, self
        if len(body) <= JOINED_BYTES:
            self._transport.write(head + body if body else head)
        else:
            self._transport.writelines((head, body))

    async def send_more(self, data: bytes, deadline: float) -> None:
        """A piece of a body of which the beginning was sent; it is there when little of it waits to leave.

        Raises `TimeoutError` if its server has not taken it by the deadline, in the loop's time.
        """
        assert self._transport is not None
        self._transport.write(data)
        if (unsent := self._unsent) is not None and not self.ended:
            async with asyncio.timeout_at(deadline):
                await unsent

    def finish(self, response: Response) -> None:
        """The exchange is over. If it ended well, the connection goes back to the idle ones of its origin."""
        transport, self._response = self._transport, None
        assert transport is not None
        # A target may answer before it has read the request: what has not left then is no other request's beginning.
        if response.reusable and response.complete and not self.ended and not transport.get_write_buffer_size():
            self._pool.give_back(self, response.idle_seconds)
        else:
            self.abort()

    def resume(self) -> None:
        """What was held has been taken away: read on."""
        if self.paused:
            self.paused = False
            with suppress(RuntimeError):  # it is closing
                assert self._transport is not None
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, whatever is under way; safe at any time, even before the connection is made."""
        self.ended = True
        if self._transport is not None:
            self._transport.abort()

    def _pause(self) -> None:
        if not self.paused and not self.ended:
            self.paused = True
            with suppress(RuntimeError):
                assert self._transport is not None
                self._transport.pause_reading()


def spoken(error: BaseException) -> str:
    """What the operating system or the TLS library said; never a byte of an answer."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
