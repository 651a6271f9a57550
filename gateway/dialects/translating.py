"""An adapter for calls in a dialect that a server does not speak.

It asks for a chat instead, through the server's own adapter, and puts the answer into the client's words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Raw, structs

from backends import answers, sse
from backends.api import Call, Chunk, Reply, RequestRefused, StreamReader, Target, UpstreamRequest
from backends.body import Body
from backends.capabilities import Capabilities
from gateway.dialects import chat
from gateway.dialects.dialect import Dialect, Writer
from gateway.dialects.mould import Mould


class Translating:
    """Speaks `dialect` to clients, and to servers what `inner` speaks."""

    def __init__(self, inner: Capabilities, dialect: Dialect) -> None:
        self._inner, self._dialect = inner, dialect

    def capabilities(self) -> Capabilities:
        """What can be done for calls in the dialect: as the server's adapter, but no stream goes on elsewhere."""
        return structs.replace(
            self._inner,
            adapter=self,
            stateful=self,
            resumable=None,
            refusing=None if self._inner.refusing is None else self,
            mistaken=None if self._inner.mistaken is None else self,
        )

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        asking = self._dialect.request(call)
        asked = self._as_asked(call, body_of(asking.fields))
        if asking.said:
            if self._inner.resumable is None:
                raise RequestRefused(
                    "the last message is the assistant's, and this model's server cannot go on with one",
                    param="messages",
                )
            asked = self._inner.resumable.resume(asked, asking.said)
        return self._inner.adapter.request(asked, target)

    def reply(self, call: Call, body: bytes) -> Reply:
        reply = self._inner.adapter.reply(self._read(call), body)
        return Reply(self._dialect.answer(call, reply.body), reply.usage)

    def chunk(self, call: Call, event: bytes) -> Iterable[Chunk]:
        return self.open(call).chunk(call, event)

    def open(self, call: Call) -> TranslatingReader:
        asked, inner = self._read(call), self._inner
        reader = inner.adapter if inner.stateful is None else inner.stateful.open(asked)
        return TranslatingReader(reader, asked, self._dialect.open(call))

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """What the server says, in the client's envelope."""
        assert self._inner.refusing is not None
        own = self._inner.refusing.refusal(self._read(call), status, body)
        if own is None or (said := _words(own[1])) is None:
            return None
        return self._dialect.refusal(call, own[0], *said)

    def mistake(self, call: Call, body: bytes) -> str | None:
        assert self._inner.mistaken is not None
        return self._inner.mistaken.mistake(self._read(call), body)

    def _read(self, call: Call) -> Call:
        """The call as the server's adapter sees it while it reads; its body is translated if that looks at it."""
        return self._as_asked(call, _Translated(self._dialect, call))

    def _as_asked(self, call: Call, body: Body) -> Call:
        return Call(
            call.id,
            self._dialect.asks,
            call.model,
            body,
            stream=call.stream,
            include_usage=call.stream,
            asked=call.asked,
        )


class TranslatingReader:
    """One stream: the server's adapter reads its events, and a writer of the client's dialect says what they say."""

    def __init__(self, inner: StreamReader, asked: Call, writer: Writer) -> None:
        self._inner, self._asked, self._writer = inner, asked, writer
        self._mould = Mould(inner)

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        if (text := self._mould.text(event)) is not None:
            return (Chunk(self._writer.say(text), 1, text=len(text)),)
        return tuple(self._written(chunk) for chunk in self._inner.chunk(self._asked, event))

    def close(self) -> tuple[Chunk, ...]:
        """What the server's reader has held back."""
        return tuple(map(self._written, getattr(self._inner, "close", tuple)()))

    def terminator(self) -> Chunk:
        """The end of a stream whose server closed it where its answer had ended, without a word."""
        return Chunk(self._writer.end(), done=True)

    def _written(self, chunk: Chunk) -> Chunk:
        if chunk.comment:
            return chunk
        said, writer = [], self._writer
        for event in sse.cut(chunk.data):
            data = sse.data(event)
            if data.startswith(b"{"):
                said.append(writer.take(chat.read(data)))
                if writer.piece is not None:
                    self._mould.keep(event, writer.piece)
        if chunk.done:
            said.append(self._writer.end())
        return structs.replace(chunk, data=b"".join(said))


class _Translated(Body):
    """The body of a call as the server was asked, made when somebody looks at it: few adapters do while they read."""

    __slots__ = ("_call", "_dialect", "_made")

    def __init__(self, dialect: Dialect, call: Call) -> None:
        self._dialect, self._call = dialect, call
        self._made: Body | None = None
        self._spans = None

    @property
    def raw(self) -> bytes:  # type: ignore[override]
        return self._body.raw

    @property
    def fields(self) -> dict[str, Raw]:  # type: ignore[override]
        return self._body.fields

    @property
    def _body(self) -> Body:
        if self._made is None:
            self._made = body_of(self._dialect.request(self._call).fields)
        return self._made


def body_of(fields: Mapping[str, Any]) -> Body:
    """A body of these fields, which is not read again: there may be images in it."""
    pieces: list[bytes | memoryview] = []
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    for name, value in fields.items():
        key = (b"," if pieces else b"{") + msgspec.json.encode(name) + b":"
        written = memoryview(value) if isinstance(value, Raw) else msgspec.json.encode(value)
        spans[name] = at + len(key), at + len(key) + len(written)
        at = spans[name][1]
        pieces += (key, written)
    return Body.known(b"".join([*pieces, b"}"]), spans)


def _words(body: bytes) -> tuple[str, str | None] | None:
    """The message and the field of a refusal; None where it has none that can be read."""
    try:
        error = answers.parsed(body)["error"]
        message, param = error["message"], error.get("param")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return (message, param if isinstance(param, str) else None) if isinstance(message, str) else None
