"""The pool of connections to targets, and what the page and questions send requests with.

    pool = Pool()
    origin = pool.origin("vllm-a", "http://vllm-a:8000")           # once, when the table is loaded
    response = await pool.request(origin, "POST", "/v1/chat/completions", headers, body, 2.0, deadline=moment)
    try:
        response.status, response.headers.get(b"content-type")
        response.deadline(moment)                                  # by when the next bytes must come; costs nothing
        while piece := await response.read():                      # all that has come; b"": the message ended well
            ...                                                    # `response.ended` saves the last `read`
    finally:
        response.release()                                         # into the pool if it is complete, else closed

A request is written once, to one connection. If that ends, however early, the attempt has failed: whether the target
has read the request cannot be known, and who may send it again is for the retry rules to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import MSG_PEEK
from typing import Final, Protocol

from gateway.core.errors import Unreachable, UpstreamError
from gateway.upstream.connection import Connection, Response, spoken
from gateway.upstream.dial import Dialer, Resolve, look_up
from gateway.upstream.http1 import HEAD_BYTES, HEAD_LINES, Pairs, request_head
from gateway.upstream.origin import Origin

IDLE_SECONDS: Final = 4.0
"""uvicorn (so vLLM) and llama.cpp close an idle connection after 5 s: ours must be gone before."""
MAX_AGE_SECONDS: Final = 60.0
SWEEP_SECONDS: Final = 1.0


class Rest(Protocol):
    """What is still to come of a body."""

    length: int | None
    """Bytes; None: nobody knows."""

    async def next(self) -> bytes:
        """The next piece; empty: that was all."""


class Pool:
    """Connections to all targets. Nothing is opened before the first request."""

    def __init__(
        self,
        *,
        idle: float = IDLE_SECONDS,
        max_age: float = MAX_AGE_SECONDS,
        head_bytes: int = HEAD_BYTES,
        head_lines: int = HEAD_LINES,
        resolve: Resolve = look_up,
    ) -> None:
        """`idle`: seconds that a connection may wait for a request; `max_age`: seconds after which it takes no more, so
        that a pool that is always busy follows its names; `head_bytes`, `head_lines`: the largest head of an answer;
        `resolve` finds the addresses of a name."""
        self._idle, self._max_age = idle, max_age
        self._head_bytes, self._head_lines = head_bytes, head_lines
        self._dialer = Dialer(resolve)
        self._connections: set[Connection] = set()
        self._resting: set[Origin] = set()
        """Those with idle connections."""
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None

    async def request(
        self,
        origin: Origin,
        method: str,
        path: str,
        headers: Pairs,
        body: bytes | None,
        connect: float,
        *,
        deadline: float | None = None,
        reuse: bool = True,
    ) -> Response:
        """Send a request, and wait for the head of its answer; every response must be released.

        `headers` have names in lower case, and neither `host` nor `content-length`. `connect` is in seconds,
        `deadline`, by which the head must have come, in the loop's time; without `reuse` the connection is a new one.
        Raises `Unreachable` when no connection stands in time, `Disconnected` when it ends before the head, `BadReply`
        for a head that cannot be read, `TimeoutError` when none has come until the deadline. Cancelling it closes the
        connection.
        """
        start = origin.starts.get((method, path)) or origin.start(method, path)
        head = request_head(start, headers, None if body is None else len(body))
        connection = self._idle_one(origin) if reuse else None
        if connection is None:
            connection = await self._dial(origin, connect)
        response = Response(self._head_bytes, self._head_lines, without_body=method == "HEAD")
        response.limit, response.call = deadline, bool(body)
        connection.send(response, head, body or b"")
        try:
            await response.head()
        except BaseException:
            response.release()
            raise
        return response

    async def upload(
        self, origin: Origin, path: str, headers: Pairs, body: bytes, rest: Rest, connect: float, deadline: float
    ) -> Response:
        """As `request`, of a POST whose body is still coming; over a connection of its own, for nothing of it can be
        sent once more. An answer that comes before the body was sent ends the sending.

        Raises also what `rest` raises.
        """
        coded = rest.length is None
        pairs = [*headers, (b"transfer-encoding", b"chunked")] if coded else headers
        length = None if rest.length is None else len(body) + rest.length
        head = request_head(origin.start("POST", path), pairs, length)
        connection = await self._dial(origin, connect)
        response = Response(self._head_bytes, self._head_lines)
        response.limit, response.call = deadline, True
        connection.send(response, head, _chunk(body) if coded else body)
        try:
            sent = False
            while not sent and not response.begun:
                piece = await rest.next()
                sent = not piece
                await connection.send_more(_chunk(piece) if coded else piece, deadline)
            await response.head()
            if not sent:
                response.reusable = False
        except BaseException:
            response.release()
            raise
        return response

    def waited_for(self, origin: Origin) -> tuple[int, float]:
        """How many calls wait for the target's next words, and when words of any came last, in the loop's time."""
        answers = [answer for connection in origin.connections if (answer := connection.call) is not None]
        heard_at = max([origin.heard_at, *(answer.heard_at for answer in answers)])
        return sum(answer.waited_for for answer in answers), heard_at

    def give_up(self, origin: Origin, failure: Callable[[], UpstreamError]) -> int:
        """Fail the calls that are at a target; how many they were. Each has a `failure` of its own."""
        answers = [answer for connection in origin.connections if (answer := connection.call) is not None]
        for answer in answers:
            answer.fail(failure())
        return len(answers)

    async def close(self) -> None:
        """End every connection, also those in use; no other is made."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._dialer.close()
        for connection in tuple(self._connections):
            connection.abort()
        if self._connections:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""
        if connection not in self._connections:
            return  # it was given up before it was ours
        self._connections.discard(connection)
        origin = connection.origin
        origin.connections.discard(connection)
        origin.open -= 1
        if connection in origin.idle:
            origin.idle.remove(connection)
        if self._emptied is not None and not self._connections and not self._emptied.done():
            self._emptied.set_result(None)

    def give_back(self, connection: Connection, idle: float | None) -> None:
        """A connection is free; `idle`: how many seconds its server says that it keeps it so."""
        now = connection.loop.time()
        # The server counts from the end of its answer, and closes when its time is over: be gone a second before.
        seconds = self._idle if idle is None else min(self._idle, idle - 1.0)
        if self._closed or seconds <= 0 or now - connection.made_at >= self._max_age:
            connection.abort()
            return
        connection.idle_until = now + seconds
        connection.origin.idle.append(connection)
        self._resting.add(connection.origin)
        if self._sweeping is None:
            self._sweeping = connection.loop.call_later(SWEEP_SECONDS, self._sweep, connection.loop)

    def _idle_one(self, origin: Origin) -> Connection | None:
        """The idle connection that was used last, if any is still good."""
        idle = origin.idle
        while idle:
            connection = idle.pop()
            now = connection.loop.time()
            if now < connection.idle_until and now - connection.made_at < self._max_age and not connection.ended:
                assert connection.socket is not None
                try:  # the loop may be a few turns behind: what has come is an end, or was not asked for
                    connection.socket.recv(1, MSG_PEEK)
                except BlockingIOError:
                    origin.reused += 1
                    return connection
                except OSError:
                    pass
            connection.abort()
        return None

    async def _dial(self, origin: Origin, seconds: float) -> Connection:
        if self._closed:
            raise Unreachable("the gateway is closing its connections")
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(seconds):
                connection = await self._dialer.connect(origin, lambda: Connection(origin, self, loop), began + seconds)
        except TimeoutError:
            raise Unreachable(f"no connection within {seconds:g} s") from None
        except (OSError, UnicodeError) as error:
            raise Unreachable(spoken(error)) from error
        if connection.ended:
            raise Unreachable("the connection ended as soon as it stood")
        # Not when the loop says that it is made: uvloop does not say that one has ended whose maker was cancelled.
        self._connections.add(connection)
        origin.connections.add(connection)
        origin.open += 1
        origin.made += 1
        origin.seconds.append(loop.time() - began)
        return connection

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle for too long."""
        self._sweeping = None
        now = loop.time()
        for origin in tuple(self._resting):
            for connection in [each for each in origin.idle if each.idle_until <= now]:
                origin.idle.remove(connection)
                connection.abort()
            if not origin.idle:
                self._resting.discard(origin)
        if self._resting:
            self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep, loop)


def _chunk(data: bytes) -> bytes:
    """A piece in chunked transfer coding; an empty one ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
