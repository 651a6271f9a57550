"""The caller's side of one exchange: its body in, the answer out, and word when it leaves."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from msgspec import DecodeError, Raw, structs
from msgspec.json import Decoder

from backends.api import UNREAD, Call
from backends.asked import Asked
from backends.body import Body, Malformed
from backends.endpoints import ALWAYS_STREAMED, ANTHROPIC, FORMS, STORED, STREAMED, Endpoint
from backends.form import Form, FormReader
from backends.large import SURELY_FEW, is_large
from backends.large import read as read_large
from gateway.auth.networks import Network
from gateway.config.table import Bodies
from gateway.core.errors import (
    BadRequest,
    GatewayError,
    HeadersTooLarge,
    ReaderTooSlow,
    ShuttingDown,
    too_many_prompts,
)
from gateway.core.types import KeyRecord
from gateway.http.answer import Answer
from gateway.http.bodies import BodyMemory
from gateway.http.connection import Connection
from gateway.http.errors import event, render
from gateway.http.framing import SUSPECT, refuse_ambiguous
from gateway.http.request import Request, new_id, source_of
from gateway.http.stored import item_of
from gateway.http.uploading import PIECE_SECONDS, Rest, late, too_large

_CONTENT_TYPE = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,199}")
_TRACE_VALUE = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,511}")
_OWN_ID = re.compile(rb"[\x21-\x7e]{1,128}")
OWN_ID: Final = b"x-client-request-id"
"""Says the client's own id back to it; `x-request-id` is ours, and unique."""
STREAM_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
BY_HAND: Final = frozenset({"passed", STORED})
"""Endpoints whose bodies may be nothing at all."""
COMMENT: Final = b": keep-alive\n\n"
PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
_name, _flag = Decoder(str), Decoder(bool)
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""Large bodies are read one at a time, so that many of them hold the loop no longer than one."""
MAX_MODEL = 256
AT_ONCE_BYTES: Final = 64 * 1024
"""A whole answer up to this size is handed to the system, read or not."""
WHOLE_BYTES_PER_SECOND: Final = 32 * 1024
"""A larger one must be read at this rate, or it would keep its memory for as long as its reader likes."""
MAX_HEADERS = 32 * 1024
"""Bytes, names and values together; vLLM and TGI would refuse more."""


class Client:
    """The caller of one call: `proxies` are the networks of trusted ones between it and us."""

    __slots__ = (
        "_announced",
        "_answer",
        "_bodies",
        "_connection",
        "_ended_by_us",
        "_endpoint",
        "_memory",
        "_pinged",
        "_prepared",
        "_request",
        "_task",
        "call_id",
        "explains",
        "gone_at",
        "headers",
        "own_id",
        "pinging",
        "source",
        "trace",
    )

    def __init__(
        self,
        connection: Connection,
        request: Request,
        answer: Answer,
        endpoint: Endpoint,
        bodies: Bodies,
        proxies: tuple[Network, ...] = (),
        memory: BodyMemory | None = None,
    ) -> None:
        """`memory` is of all bodies that the worker is reading."""
        self._memory = memory or BodyMemory()
        self._connection, self._request, self._answer = connection, request, answer
        self._endpoint, self._bodies = endpoint, bodies
        self.call_id = new_id()
        self.headers: dict[bytes, bytes] = dict(request.headers)
        self.trace = {"x-request-id": self.call_id}
        self.own_id = ""
        """What the client calls its request, if it says so in `x-request-id`."""
        if b"x-request-id" in self.headers:
            self._keep_own_id()
        if b"traceparent" in self.headers or b"tracestate" in self.headers:
            self._pass_trace_on()
        self.source = source_of(connection.peer, request.headers, proxies)
        self.explains = False
        """The answer's headers are to tell how its target was picked."""
        self.gone_at: float | None = None
        """When we learned that it had left, by the monotonic clock; None: it has not."""
        self._announced = self._pinged = False
        self.pinging: asyncio.TimerHandle | None = None
        """The next sign of life, as long as the answer has not begun."""
        self._prepared: list[tuple[bytes, bytes]] = []
        self._task = connection.task
        self._ended_by_us: ShuttingDown | None = None
        connection.on_lost = self._left

    @property
    def started(self) -> bool:
        """Something of the answer has left: from here on nothing can be retried or become an error status."""
        return self._answer.started and not self._pinged

    def check(self) -> None:
        """Raise `BadFraming` for a head that a proxy before us may have read in another way."""
        head = self._request.headers
        if len(self.headers) != len(head) or not SUSPECT.isdisjoint(self.headers):
            refuse_ambiguous(head)

    async def call(self, key: KeyRecord, default: str = "") -> Call:
        """Read the whole body, which counts as the key's until then; `default` is the model if it names none."""
        headers = self.headers
        if sum(map(len, headers)) + sum(map(len, headers.values())) > MAX_HEADERS:
            raise HeadersTooLarge(f"The headers are larger than {MAX_HEADERS} bytes.")
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise BadRequest("Compressed bodies are not taken: send the JSON as it is.", param="content-encoding")
        announced, limit = headers.get(b"content-length", b"0"), self._bodies.request
        if announced.isdigit() and (len(announced) > 15 or int(announced) > limit):
            raise too_large(limit)
        request = self._request
        content_type = headers.get(b"content-type", b"application/json")
        if self._endpoint in FORMS:
            return await self._form(key, content_type.decode("latin-1"), default)
        raw = request.take() if request.is_whole and request.unread <= limit else await self._body(key)
        elements, large = self._bodies.elements, None
        if self._endpoint in BY_HAND:
            return self._odd(raw, content_type.decode("latin-1"), default)
        if len(raw) > min(SURELY_FEW, 2 * elements) and is_large(raw, elements):
            large = await in_windows(self._endpoint, raw, elements)
        call = read(self.call_id, self._endpoint, raw, content_type, large, default)
        if self._endpoint == "generate" and ALWAYS_STREAMED in request.target:
            call = structs.replace(call, stream=True)
        if call.asked.prompts > self._bodies.prompts:
            raise too_many_prompts(call, self._bodies.prompts)
        return call

    def _odd(self, raw: bytes, content_type: str, default: str) -> Call:
        """A call whose body may be nothing at all."""
        request = self._request
        if self._endpoint == STORED:
            return Call(self.call_id, STORED, "", Body(b"{}"), method=request.method, item=item_of(request))
        try:
            body = Body(raw if request.method == "POST" else b"{}")
        except Malformed as error:
            raise BadRequest(f"{error}", param=error.param) from None
        call = read(self.call_id, self._endpoint, raw, content_type.encode("latin-1"), (body, UNREAD), default)
        return structs.replace(call, path=request.path, method=request.method)

    async def _form(self, key: KeyRecord, content_type: str, default: str) -> Call:
        """A call whose body is a form; once its model is known, what has not come of it is not waited for."""
        try:
            reader = FormReader(content_type)
            raw = await self._body(key, reader)
            rest = None
            if not self._request.is_whole:
                announced = int(self.headers.get(b"content-length", b"0"))
                rest = Rest(self._connection, self._request, self._bodies, reader, len(raw), announced)
            form = Form(raw, content_type, reader, rest)
        except Malformed as error:
            raise BadRequest(f"{error}", param=error.param) from None
        return read(self.call_id, self._endpoint, raw, content_type.encode("latin-1"), (form, Asked()), default)

    def keep_alive(self, seconds: float, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send a sign of life each so many seconds until the answer begins; its head would have these headers."""
        self.pinging = self._connection.loop.call_later(seconds, self._ping, seconds, headers)

    def stop_pinging(self) -> None:
        """The answer begins, or there will be none."""
        if self.pinging is not None:
            self.pinging.cancel()
        self.pinging, self._pinged = None, False

    def _ping(self, seconds: float, headers: Sequence[tuple[bytes, bytes]]) -> None:
        answer, connection = self._answer, self._connection
        if answer.ended or connection.lost:
            self.pinging = None
            return
        if not answer.started:
            self.prepare([(b"content-type", b"text/event-stream"), *headers])
            answer.start(200, [*self._prepared, *STREAM_HEADERS])
            self._pinged = True
        if not connection.is_full:
            answer.write(PING if self._endpoint in ANTHROPIC else COMMENT)
        self.pinging = connection.loop.call_later(seconds, self._ping, seconds, headers)

    def prepare(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Set the headers that the answer will start with."""
        self._prepared = [(b"x-request-id", self.call_id.encode()), *headers]
        if self._endpoint in ANTHROPIC:
            self._prepared.append((b"request-id", self.call_id.encode()))
        if self.own_id:
            self._prepared.append((OWN_ID, self.own_id.encode()))

    async def send(self, data: bytes) -> None:
        """Send a piece of a stream, the first one with the head of the response. Raises `ReaderTooSlow`."""
        answer, connection = self._answer, self._connection
        if self.pinging is not None:
            self.stop_pinging()
        if not answer.started:
            answer.start(200, [*self._prepared, *STREAM_HEADERS])
        answer.write(data)
        if connection.is_full:
            await connection.drained(self._bodies.reader)

    async def finish(self, data: bytes, ending: Callable[[], Awaitable[None]]) -> None:
        """Send the end of the answer, or all of it, the last bytes of which leave when `ending` is done.

        A client that has all of its answer finds it done; one that reads a large answer slowly does not.
        Raises `ReaderTooSlow`.
        """
        answer, rest = self._answer, data if len(data) <= AT_ONCE_BYTES else memoryview(data)
        if self.pinging is not None:
            self.stop_pinging()
        if not answer.started:
            answer.start(200, [*self._prepared, (b"content-length", b"%d" % len(data))])
            self._announced = True
        if len(data) > AT_ONCE_BYTES:
            rest = await self._send_most(memoryview(data))
        await ending()
        answer.end(rest)

    def fail(self, error: GatewayError) -> None:
        """End the exchange with an error: as a response, or as the last event of a stream that has begun.

        Half of a whole answer stays that: it was announced to be longer, and its connection is reset.
        """
        answer = self._answer
        if answer.ended or self._announced or isinstance(error, ReaderTooSlow):
            return
        status, headers, body = render(error, self.call_id, self._endpoint)
        if self.own_id:
            headers.append((OWN_ID, self.own_id.encode()))
        if answer.started:
            answer.end(event(body, self._endpoint))
        else:
            answer.start(status, headers)
            answer.end(body)

    def end(self) -> None:
        """End its call with `ShuttingDown`, wherever it is, unless the client has left."""
        if self.gone_at is not None or self._task is None:
            return
        self._ended_by_us, self._connection.on_lost = ShuttingDown(), None
        self._task.cancel(self._ended_by_us)

    def drain(self) -> None:
        """Have the answer, if it has not begun, tell the client to use another connection next time."""
        self._answer.closes = True

    def cancelled(self) -> bool:
        """Whether it was us or the client who cancelled its call, which is over then; else the server did."""
        if self._task is None or (self.gone_at is None and self._ended_by_us is None):
            return False
        self._task.uncancel()
        if self._ended_by_us is not None:
            self.fail(self._ended_by_us)
        return True

    def trust_own_id(self) -> None:
        """Have targets log the client's own id, where it has one, instead of ours."""
        if self.own_id:
            self.trace["x-request-id"] = self.own_id

    def _keep_own_id(self) -> None:
        value = self.headers[b"x-request-id"]
        if _OWN_ID.fullmatch(value):
            self.own_id = value.decode("ascii")

    def _pass_trace_on(self) -> None:
        """Headers by which the target's logs can be matched with the client's."""
        for name in ("traceparent", "tracestate"):
            if (value := self.headers.get(name.encode())) is not None and _TRACE_VALUE.fullmatch(value):
                self.trace[name] = value.decode("ascii")

    async def _body(self, key: KeyRecord, form: FormReader | None = None) -> bytes:
        """The whole body; of a `form` no more than up to a file behind its model.

        Raises `BodyTimeout`, `BodyTooLarge`, `BadFraming`, `TooManyBodies`, `BodyMemoryFull`, and `Malformed` for what
        is no form.
        """
        bodies, loop, memory = self._bodies, self._connection.loop, self._memory
        by, patience = loop.time() + bodies.timeout, min(PIECE_SECONDS, bodies.timeout)
        announced = int(self.headers.get(b"content-length", b"0"))
        pieces, size, taken = list[bytes](), 0, 0
        try:
            memory.take(key, announced, bodies)
            taken = announced
            while piece := await self._connection.more(min(patience, by - loop.time())):
                pieces.append(piece)
                size += len(piece)
                if size > bodies.request:
                    raise too_large(bodies.request)
                if size > taken:  # it comes in chunks, and nobody knows how many
                    memory.take(key, size - taken, bodies)
                    taken = size
                if form is not None:
                    form.feed(piece)
                    if form.has_file and form.model is not None:
                        break
        except TimeoutError:
            raise late(bodies) from None
        finally:
            memory.give_back(key, taken)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _send_most(self, data: memoryview) -> memoryview:
        """Send a large answer as fast as its client reads, which must not be too slowly; gives back the last piece."""
        answer, connection, loop = self._answer, self._connection, self._connection.loop
        by = loop.time() + self._bodies.reader + len(data) / WHOLE_BYTES_PER_SECOND
        while len(data) > AT_ONCE_BYTES:
            answer.write(data[:AT_ONCE_BYTES])
            data = data[AT_ONCE_BYTES:]
            if connection.is_full:
                await connection.drained(max(0.0, min(self._bodies.reader, by - loop.time())))
        return data

    def _left(self) -> None:
        """The connection has ended."""
        if self._answer.ended or self._task is None:
            return
        self.gone_at = time.monotonic()
        self._task.cancel()


async def in_windows(endpoint: Endpoint, raw: bytes, elements: int) -> tuple[Body, Asked]:
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
    call_id: str,
    endpoint: Endpoint,
    raw: bytes,
    content_type: bytes,
    large: tuple[Body, Asked] | None = None,
    default: str = "",
) -> Call:
    """Decode a body as far as routing needs; a `large` one was read already, and one that names no model asks for the
    `default`. Raises `BadRequest`, naming the field."""
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise BadRequest("The content-type header holds characters that do not belong there.", param="content-type")
    try:
        body, what = (Body(raw), UNREAD) if large is None else large
        stream, options = False, {}
        try:
            model = _name.decode(body.fields["model"])
            if endpoint in STREAMED and "stream" in body.fields:
                stream = _flag.decode(body.fields["stream"])
        except (KeyError, DecodeError):  # absent, null, or something else: this way tells
            model = body.get("model", str, "")
            stream = endpoint in STREAMED and body.get("stream", bool, False)
        if stream and "stream_options" in body.fields:
            options = body.get("stream_options", dict[str, Raw], {})
    except Malformed as error:
        raise BadRequest(f"{error}", param=error.param) from None
    if not model:
        model = default
    if not model:
        raise BadRequest("The field 'model' is required: name the model to ask.", param="model")
    if len(model) > MAX_MODEL or not model.isprintable():
        raise BadRequest(f"'model' must be at most {MAX_MODEL} printable characters.", param="model")
    wanted = bytes(options.get("include_usage", b"")) == b"true"
    return Call(call_id, endpoint, model, body, content_type.decode("ascii"), stream, wanted, what)
