"""One connection to a target, and the answer that comes over it: what was read at once is handed on as one piece."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from gateway.core.errors import Disconnected, UpstreamError
from gateway.upstream.http1 import HEAD_BYTES, HEAD_LINES, Answer

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

    __slots__ = ("_connection", "_due", "_failure", "_limit", "_loop", "_tailing", "_timer", "_waiter")

    def __init__(
        self,
        connection: Connection,
        head_bytes: int = HEAD_BYTES,
        head_lines: int = HEAD_LINES,
        *,
        without_body: bool = False,
    ) -> None:
        super().__init__(head_bytes, head_lines, without_body=without_body)
        self._connection: Connection | None = connection
        self._loop = connection.loop
        self._waiter: asyncio.Future[None] | None = None
        self._failure: UpstreamError | None = None
        self._limit: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._tailing = False
        """Its reader has all that it wants; what is left is the end of the message."""

    @property
    def ended(self) -> bool:
        """The message has ended well, and all of it has been read: `read` would return nothing."""
        return self.complete and not self.pieces

    def deadline(self, moment: float | None) -> None:
        """By when, in the loop's time, the next bytes must have come; None: whenever they come.

        It counts while `read` waits, and stays until it is moved. Moving it costs nothing.
        """
        self._limit = moment
        if self._waiter is not None and moment is not None:
            self._watch(moment)

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
            if self._connection is None:
                raise Disconnected("the answer was given up")
            waiter = self._waiter = self._loop.create_future()  # as `_wait`, which would be a frame more a piece
            if self._limit is not None and (self._timer is None or self._due > self._limit):
                self._watch(self._limit)
            try:
                await waiter
            finally:
                self._waiter = None
        piece = self.take()
        connection = self._connection
        if connection is not None and connection.paused:
            connection.resume()
        return piece

    async def head(self) -> None:
        """Wait until the head has come. Raises `BadReply`, `Disconnected`, `TimeoutError`."""
        while not self.status:
            if self._failure is not None:
                raise self._failure
            await self._wait()

    def release(self, tail: float = 0.0) -> None:
        """Let go of the connection: it serves again if the message is complete, else it is closed, at once or if
        nothing but its end comes, when that has not come in `tail` seconds."""
        connection = self._connection
        if connection is None:
            return
        if tail and not self.complete and self._failure is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._tailing = self._loop.call_later(tail, self.release), True
            return
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection.finish(self)

    def fail(self, failure: UpstreamError) -> None:
        """Nothing more comes; the first failure is the one that is told."""
        if self._failure is None and not self.complete:
            self._failure = failure
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._tailing:
            self.release()
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        if self._limit is not None:
            self._watch(self._limit)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _watch(self, moment: float) -> None:
        """One timer for the whole answer: it is set anew only if it would come too late."""
        if self._timer is not None:
            if self._due <= moment:
                return
            self._timer.cancel()
        self._timer, self._due = self._loop.call_at(moment, self._look), moment

    def _look(self) -> None:
        self._timer = None
        if self._waiter is None or self._limit is None:
            return  # the next wait sets it again
        if self._loop.time() < self._limit:
            self._watch(self._limit)
        elif not self._waiter.done():
            self._waiter.set_exception(TimeoutError("nothing came in time"))


class Connection(asyncio.Protocol):
    """One connection: a request out, its answer in, then the next. Made by the pool."""

    __slots__ = ("_pool", "_response", "_transport", "ended", "idle_until", "loop", "made_at", "origin", "paused")

    def __init__(self, origin: Origin, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.origin, self.loop, self._pool = origin, loop, pool
        self.made_at = loop.time()
        self.idle_until = 0.0
        """Until when it may wait for another request, in the loop's time."""
        self.ended = False
        """It takes no request any more."""
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's is no asyncio.Transport
        if self.ended:  # given up while it was made
            transport.abort()  # type: ignore[attr-defined]

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
        response.wake()

    def eof_received(self) -> None:
        self.ended = True
        if self._response is not None:
            try:
                self._response.end()
            except UpstreamError as failure:
                self._response.fail(failure)
            self._response.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._pool.closed(self)
        if (response := self._response) is not None:
            response.reusable = False
            response.fail(Disconnected(response.missing() if exc is None else spoken(exc)))

    def send(self, response: Response, head: bytes, body: bytes) -> None:
        """Begin an exchange: what comes from here on belongs to `response`."""
        assert self._transport is not None
        self._response = response
        if len(body) <= JOINED_BYTES:
            self._transport.write(head + body if body else head)
        else:
            self._transport.writelines((head, body))

    def finish(self, response: Response) -> None:
        """The exchange is over. If it ended well, the connection goes back to the idle ones of its origin."""
        self._response = None
        if response.reusable and response.complete and not self.ended and self._flushed():
            self._pool.give_back(self, response.idle_seconds)
        else:
            self.abort()

    def resume(self) -> None:
        """What was held has been taken away: read on."""
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

    def _flushed(self) -> bool:
        """All of the request has left; a target may answer before it has read it."""
        return self._transport is not None and not self._transport.get_write_buffer_size()


def spoken(error: BaseException) -> str:
    """What the operating system or the TLS library said; never a byte of an answer."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
