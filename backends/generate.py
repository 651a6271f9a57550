"""TGI's own language, for clients of TGI: `/generate`, `/generate_stream`, and `/`, which answers with a list."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct

from backends import answers, sse
from backends.api import Call, Chunk, Reply, StreamReader, Target, UpstreamFault, UpstreamRequest, Usage
from backends.native import Native

_TEXTS = re.compile(rb'"text":\s?"([^"\\]*+(?:\\.[^"\\]*+)*+)"')
STATUS: Final = {"validation": 422, "overloaded": 429, "generation": 500}
"""Of an error's type, where a stream tells of it: its own status is always 200."""


class _Details(Struct):
    generated_tokens: int | None = None
    input_length: int | None = None
    prefill: list[Raw] = []


class _Event(Struct):
    generated_text: Raw = Raw()
    details: _Details | None = None
    token: Raw = Raw()
    error: Raw = Raw()
    error_type: str | None = None


_event = msgspec.json.Decoder(_Event)
_whole = msgspec.json.Decoder(_Event | list[_Event])


class NativeGenerate(Native):
    """TGI speaks it itself. The body goes on as it is: TGI has one model, and no name for it."""

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        headers = {"content-type": call.content_type}
        if target.api_key is not None:
            headers["authorization"] = "Bearer " + target.api_key
        path = "/" if call.endpoint == "generate/root" else "/generate_stream" if call.stream else "/generate"
        return UpstreamRequest(path, headers, call.body.raw)

    def reply(self, call: Call, body: bytes) -> Reply:
        whole: _Event | list[_Event] = answers.decoded(_whole, body)
        first = (whole[0] if whole else _Event()) if isinstance(whole, list) else whole
        if first.error:
            raise _fault(first)
        return Reply(body, _usage(first.details))

    def open(self, call: Call) -> StreamReader:
        return Generated()

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """TGI's own words, unless they are no JSON; a 424 says that the server has failed."""
        if status == 424:
            raise UpstreamFault(500, "")
        return super().refusal(call, status, body)


class Generated:
    """One stream. The event that has the whole text is the last one."""

    __slots__ = ()

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        """Read one event. Raises `UpstreamFault` for one that tells of a failure, `ValueError` for nonsense."""
        data = sse.data(event)
        if not data:
            return (Chunk(event, comment=True),)
        seen: _Event = answers.decoded(_event, data)
        if seen.error and seen.error != answers.NULL:
            raise _fault(seen)
        if not seen.token:
            raise ValueError("an event without a token")
        if not seen.generated_text or seen.generated_text == answers.NULL:
            return (Chunk(event, 1, text=sum(map(len, _TEXTS.findall(data)))),)
        return (Chunk(b"", 1, _usage(seen.details), finished=1), Chunk(event, done=True))


def _fault(event: _Event) -> UpstreamFault:
    said = answers.parsed(event.error)
    return UpstreamFault(STATUS.get(event.error_type or "", 500), said if isinstance(said, str) else "")


def _usage(details: _Details | None) -> Usage | None:
    """What was counted, if the client has asked for details."""
    if details is None or details.generated_tokens is None:
        return None
    read = details.input_length if details.input_length is not None else len(details.prefill)
    return Usage(read, details.generated_tokens) if read > 0 else None
