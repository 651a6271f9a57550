"""The caller's side of one exchange: its body in, the answer out, and word when it leaves."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

from msgspec import DecodeError, Raw
from msgspec.json import Decoder

from backends.api import UNREAD, Call, Endpoint
from backends.asked import Asked
from backends.body import Body, Malformed
from backends.large import SURELY_FEW, is_large
from backends.large import read as read_large
from gateway.auth.networks import Network, address
from gateway.config.table import Bodies
from gateway.core.errors import (
    BadFraming,
    BadRequest,
    BodyTimeout,
    BodyTooLarge,
    GatewayError,
    HeadersTooLarge,
    ReaderTooSlow,
    ShuttingDown,
)
from gateway.http.errors import render
from gateway.http.framing import SUSPECT, refuse_ambiguous
from gateway.http.writer import Ending, Send, Writer, nowhere

Receive = Callable[[], Awaitable[Any]]

BOOT: Final = secrets.token_hex(6)
"""Names this worker: the first part of the ids of its calls."""
_serial = itertools.count(1)
_CONTENT_TYPE = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,199}")
_TRACE_VALUE = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,511}")
_PORT = re.compile(r"^(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]+)?$")
CLOSE: Final = (b"connection", b"close")
STREAM_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_name, _flag = Decoder(str), Decoder(bool)
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""Large bodies are read one at a time, so that many of them hold the loop no longer than one."""
MAX_MODEL = 256
PIECE_SECONDS = 10.0
"""A body of which nothing comes for so long is not coming."""
MAX_HEADERS = 32 * 1024
"""Bytes, names and values together; vLLM and TGI would refuse more."""


class Client:
    """A client of the data plane behind an ASGI server; `proxies` are the networks of trusted ones in between."""

    __slots__ = (
        "_announced",
        "_bodies",
        "_body_late",
        "_ended_by_us",
        "_endpoint",
        "_head",
        "_prepared",
        "_receive",
        "_send",
        "_task",
        "_watch",
        "_writer",
        "call_id",
        "closes",
        "explains",
        "gone_at",
        "headers",
        "source",
        "started",
        "trace",
    )

    def __init__(
        self,
        scope: Any,
        receive: Receive,
        send: Send,
        endpoint: Endpoint,
        bodies: Bodies,
        proxies: tuple[Network, ...] = (),
    ) -> None:
        self.call_id = f"tl-{BOOT}-{next(_serial):x}"
        self._head = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self._head)
        self.trace = {"x-request-id": self.call_id}
        if b"traceparent" in self.headers or b"tracestate" in self.headers:
            self._pass_trace_on()
        self.source = source_of(scope, proxies)
        self.explains = False
        """The answer's headers are to tell how its target was picked."""
        self.closes = False
        """The answer's head tells the client to use another connection next time."""
        self.started = False
        """Something of the answer has left: from here on nothing can be retried or become an error status."""
        self.gone_at: float | None = None
        """When we learned that it had left, by the monotonic clock; None: it has not."""
        self._receive, self._send, self._writer = receive, send, Writer(scope, send, bodies.reader)
        self._endpoint, self._bodies = endpoint, bodies
        self._announced = self._body_late = False
        self._prepared: list[tuple[bytes, bytes]] = []
        self._watch: asyncio.Future[Any] | None = None
        self._task = asyncio.current_task()
        self._ended_by_us: ShuttingDown | None = None

    def check(self) -> None:
        """Raise `BadFraming` for a head that a proxy before us may have read in another way."""
        if len(self.headers) != len(self._head) or not SUSPECT.isdisjoint(self.headers):
            refuse_ambiguous(self._head)

    async def call(self) -> Call:
        """Read the whole body, then begin to watch for the client's leaving."""
        headers = self.headers
        if sum(map(len, headers)) + sum(map(len, headers.values())) > MAX_HEADERS:
            raise HeadersTooLarge(f"The headers are larger than {MAX_HEADERS} bytes.")
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise BadRequest("Compressed bodies are not taken: send the JSON as it is.", param="content-encoding")
        raw = await self._body()
        self._watch = asyncio.ensure_future(self._receive())
        self._watch.add_done_callback(self._left)
        content_type = headers.get(b"content-type", b"application/json")
        elements, large = self._bodies.elements, None
        if len(raw) > min(SURELY_FEW, 2 * elements) and is_large(raw, elements):
            large = await _in_windows(self._endpoint, raw, elements)
        return read(self.call_id, self._endpoint, raw, content_type, large)

    def prepare(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Set the headers that the answer will start with."""
        self._prepared = [(b"x-request-id", self.call_id.encode()), *headers]

    async def send(self, data: bytes) -> None:
        """Send a piece of a stream, the first one with the head of the response. Raises `ReaderTooSlow`."""
        if not self.started:
            await self._start(200, [*self._prepared, *STREAM_HEADERS])
        await self._writer.send(data)

    async def finish(self, data: bytes, ending: Ending) -> None:
        """Send the end of the answer, or all of it, the last bytes of which leave when `ending` is done."""
        if not self.started:
            self._announced = True
            await self._start(200, [*self._prepared, (b"content-length", b"%d" % len(data))])
        await self._writer.finish(data, ending)

    async def fail(self, error: GatewayError) -> None:
        """End the exchange with an error: as a response, or as the last event of a stream that has begun.

        Half of a whole answer stays that: it was announced to be longer, and the server closes the connection.
        """
        if self._writer.ended or self._announced:
            return
        status, headers, body = render(error, self.call_id)
        with suppress(ReaderTooSlow):
            if not self.started:
                await self._start(status, headers)
                await self._writer.finish(body)
            else:
                await self._writer.finish(b"data: " + body + b"\n\n")

    def end(self) -> None:
        """End its call with `ShuttingDown`, wherever it is, unless the client has left."""
        if self.gone_at is not None or self._task is None:
            return
        self._ended_by_us, watch, self._watch = ShuttingDown(), self._watch, None
        if watch is not None:
            watch.cancel()  # a client that leaves now would break off what gives all back
        self._task.cancel(self._ended_by_us)

    async def cancelled(self) -> bool:
        """Whether it was us or the client who cancelled its call, which is over then; else the server did."""
        if self._task is None or (self.gone_at is None and self._ended_by_us is None):
            return False
        self._task.uncancel()
        if self._ended_by_us is not None:
            await self.fail(self._ended_by_us)
        return True

    def close(self) -> None:
        """Let go of the server, whose exchange ends when nobody knows it any more."""
        # Granian's future keeps its callbacks, and they keep us: without letting go, every call would stay in memory.
        # And errors keep us until garbage is collected: a connection whose body was not read would stay open as long.
        self._writer.close()
        self._receive, self._send = _nothing, nowhere
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    def _pass_trace_on(self) -> None:
        """Headers by which the target's logs can be matched with the client's."""
        for name in ("traceparent", "tracestate"):
            if (value := self.headers.get(name.encode())) is not None and _TRACE_VALUE.fullmatch(value):
                self.trace[name] = value.decode("ascii")

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        if self.closes:
            headers.append(CLOSE)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self) -> bytes:
        """The whole body. Raises `BodyTimeout`, `BodyTooLarge`, or the cancellation of the call."""
        limit, loop, task = self._bodies.request, asyncio.get_running_loop(), self._task
        announced = self.headers.get(b"content-length", b"0")
        if announced.isdigit() and (len(announced) > 15 or int(announced) > limit):
            raise _too_large(limit)
        patience, by = min(PIECE_SECONDS, self._bodies.timeout), loop.time() + self._bodies.timeout
        timer = loop.call_later(patience, self._lose_patience)
        pieces: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    self.gone_at = time.monotonic()
                    # The server says the same of a body with broken chunks, whose sender waits for an answer.
                    await self.fail(BadFraming("The body broke off, or its chunks are not what they should be."))
                    raise asyncio.CancelledError
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > limit:
                    raise _too_large(limit)
                more = message.get("more_body", False)
                if more:
                    timer.cancel()
                    timer = loop.call_at(min(by, loop.time() + patience), self._lose_patience)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except asyncio.CancelledError:
            if not self._body_late or task is None or task.uncancel():
                raise
            raise BodyTimeout(
                f"The body did not arrive within {self._bodies.timeout:g} s, or nothing of it for {patience:g} s."
            ) from None
        finally:
            timer.cancel()
            pieces.clear()  # an error would keep them until garbage is collected

    def _lose_patience(self) -> None:
        """The body, or the next piece of it, is late."""
        self._body_late = True
        if self._task is not None:
            self._task.cancel()

    def _left(self, watch: asyncio.Future[Any]) -> None:
        """The server tells that the client has left."""
        if self._watch is None or watch.cancelled() or self._writer.ended or self._task is None:
            return
        self.gone_at = time.monotonic()
        self._task.cancel()


async def _nothing() -> Any:
    """What a client says once its call is over."""
    return {"type": "http.disconnect"}


def source_of(scope: Any, proxies: tuple[Network, ...] = ()) -> str | None:
    """The address a call came from; None if the server does not know, as behind a Unix socket.

    When that is a trusted proxy, it is the right-most address of X-Forwarded-For that is none: what stands to the left
    of it is whatever a client liked to send.
    """
    peer = scope.get("client")
    source: str | None = (peer[0] or None) if peer else None
    if source is None or not proxies:
        return source
    hops = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").split(b",")
    while (found := address(source)) is not None and any(found in network for network in proxies):
        source = str(found)
        hop = _PORT.sub(r"\1\2", hops.pop().strip().decode("latin-1")) if hops else ""
        if address(hop) is None:  # a proxy that says nothing, or nonsense, is as far as we can see
            return source
        source = hop
    return source if found is None else str(found)


async def _in_windows(endpoint: Endpoint, raw: bytes, elements: int) -> tuple[Body, Asked]:
    """Read a large body, one after the other, and let others work between any two windows. Raises `BadRequest`."""
    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with turn:
        steps = read_large(endpoint, raw, elements)
        try:
            while True:
                next(steps)
                await asyncio.sleep(0)
        except StopIteration as end:
            large: tuple[Body, Asked] = end.value
            return large
        except Malformed as error:
            raise BadRequest(f"{error}", param=error.param) from None


def read(
    call_id: str, endpoint: Endpoint, raw: bytes, content_type: bytes, large: tuple[Body, Asked] | None = None
) -> Call:
    """Decode a body as far as routing needs; a `large` one was read already. Raises `BadRequest`, naming the field."""
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise BadRequest("The content-type header holds characters that do not belong there.", param="content-type")
    try:
        body, what = (Body(raw), UNREAD) if large is None else large
        stream, options = False, {}
        try:
            model = _name.decode(body.fields["model"])
            if endpoint != "embeddings" and "stream" in body.fields:
                stream = _flag.decode(body.fields["stream"])
        except (KeyError, DecodeError):  # absent, null, or something else: this way tells
            model = body.get("model", str, "")
            stream = endpoint != "embeddings" and body.get("stream", bool, False)
        if stream and "stream_options" in body.fields:
            options = body.get("stream_options", dict[str, Raw], {})
    except Malformed as error:
        raise BadRequest(f"{error}", param=error.param) from None
    if not model:
        raise BadRequest("The field 'model' is required: name the model to ask.", param="model")
    if len(model) > MAX_MODEL or not model.isprintable():
        raise BadRequest(f"'model' must be at most {MAX_MODEL} printable characters.", param="model")
    wanted = bytes(options.get("include_usage", b"")) == b"true"
    return Call(call_id, endpoint, model, body, content_type.decode("ascii"), stream, wanted, what)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the limit of {limit} bytes.")
