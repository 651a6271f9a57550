"""An adapter for chats with tools at servers that leave the model's calls in its text: it takes them out of there."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct, structs

from backends import answers, sse
from backends.api import Call, Chunk, ParsesTools, Reply, StreamReader, Target, UpstreamRequest
from backends.body import Body
from backends.capabilities import Capabilities
from gateway.dialects.mould import Mould
from gateway.dialects.tools.answer import with_calls
from gateway.dialects.tools.events import CallEvents

NOTHING = (b"", b"null", b"[]")


class Parsing:
    """Speaks to servers as `inner` does, and finds calls in the format of `parser`."""

    def __init__(self, inner: Capabilities, parser: str) -> None:
        self._inner, self._parser = inner, parser
        adapter = inner.adapter
        self._unparsed = adapter.unparsed if isinstance(adapter, ParsesTools) else None

    def capabilities(self) -> Capabilities:
        """What can be done for chats: all that the server's adapter can."""
        return structs.replace(self._inner, adapter=self, stateful=self)

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        choice = bytes(call.body.fields.get("tool_choice", b"null"))
        if self._unparsed is not None and _offers_tools(call) and choice in (b"null", b'"auto"'):
            call = structs.replace(call, body=Body(call.body.spliced({"tool_choice": self._unparsed})))
        return self._inner.adapter.request(call, target)

    def reply(self, call: Call, body: bytes) -> Reply:
        reply = self._inner.adapter.reply(call, body)
        if not _offers_tools(call):
            return reply
        return Reply(with_calls(call, reply.body, self._parser, _names(call)), reply.usage)

    def chunk(self, call: Call, event: bytes) -> Iterable[Chunk]:
        return self.open(call).chunk(call, event)

    def open(self, call: Call) -> StreamReader:
        inner = self._inner
        reader = inner.adapter if inner.stateful is None else inner.stateful.open(call)
        return ParsingReader(reader, CallEvents(call, self._parser, _names(call))) if _offers_tools(call) else reader


class ParsingReader:
    """One stream of a chat with tools."""

    def __init__(self, inner: StreamReader, events: CallEvents) -> None:
        self._inner, self._events, self._mould = inner, events, Mould(inner)

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        if (text := self._mould.text(event)) is not None:
            return (Chunk(self._events.say(event, text), 1, text=len(text)),)
        return tuple(self._read(chunk) for chunk in self._inner.chunk(call, event))

    def close(self) -> tuple[Chunk, ...]:
        """What the server's reader has held back."""
        return tuple(map(self._read, getattr(self._inner, "close", tuple)()))

    def _read(self, chunk: Chunk) -> Chunk:
        if chunk.comment or chunk.opening or not chunk.data:
            return chunk
        read = []
        for event in sse.cut(chunk.data):
            read.append(self._events.take(event, sse.data(event)))
            if self._events.piece is not None:
                self._mould.keep(event, self._events.piece)
        if chunk.done:
            read.insert(-1, self._events.end())
        return structs.replace(chunk, data=b"".join(read))


class _Function(Struct, frozen=True):
    name: str = ""


class _Tool(Struct):
    function: _Function = _Function()


_tools = msgspec.json.Decoder(list[_Tool])


def _offers_tools(call: Call) -> bool:
    """Whether the model may call tools."""
    fields = call.body.fields
    return (
        call.endpoint == "chat/completions"
        and bytes(fields.get("tools", Raw())) not in NOTHING
        and bytes(fields.get("tool_choice", Raw())) != b'"none"'
    )


def _names(call: Call) -> frozenset[str]:
    """The functions that are offered; what cannot be read is the server's to refuse."""
    try:
        tools = answers.decoded(_tools, call.body.fields["tools"])
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(tool.function.name for tool in tools)
