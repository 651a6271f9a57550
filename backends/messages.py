"""Reads answers of Anthropic's `/v1/messages`: the events of one stream, and the usage of a whole answer."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct

from backends import answers, sse
from backends.api import Call, Chunk, UpstreamFault, Usage

_TEXTS = re.compile(rb'"(?:text|thinking|partial_json)":\s?"([^"\\]*+(?:\\.[^"\\]*+)*+)"')
STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "overloaded_error": 503,
    "timeout_error": 504,
}
"""Of an error's type. Anthropic's own answer to overload is 529, which no other server knows."""
_OPENING: Final = ("message_start", "content_block_start")


class _Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Typed(Struct):
    type: str = ""


class _Delta(Struct):
    stop_reason: str | None = None


class _Message(Struct):
    usage: Raw = Raw()


class _Event(Struct):
    type: str = ""
    message: _Message | None = None
    content_block: _Typed | None = None
    delta: _Delta | None = None
    usage: Raw = Raw()
    error: Raw = Raw()


class _Error(Struct):
    type: str = ""
    message: str = ""


class _Whole(Struct):
    type: Raw = Raw()
    usage: Raw = Raw()
    error: Raw = Raw()
    content: Raw = Raw()


_event = msgspec.json.Decoder(_Event)
_whole = msgspec.json.Decoder(_Whole)
_usage = msgspec.json.Decoder(_Usage)
_error = msgspec.json.Decoder(_Error)


class Messages:
    """One stream. It ends well with `message_stop`, after a `message_delta` that told why the answer ended."""

    __slots__ = ("_stopped", "_used")

    def __init__(self) -> None:
        self._stopped = False
        self._used = _Usage()

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        """Read one event. Raises `UpstreamFault` for one that tells of a failure, `ValueError` for nonsense."""
        data = sse.data(event)
        if not data:
            return (Chunk(event, comment=True),)
        if data == b"[DONE]":
            return (Chunk(event, done=True),)
        seen: _Event = answers.decoded(_event, data)
        if seen.type == "content_block_delta":
            return (Chunk(event, 1, text=sum(map(len, _TEXTS.findall(data)))),)
        if seen.type == "error" or (seen.error and seen.error != answers.NULL):
            raise fault(seen.error)
        if seen.type == "ping":
            return (Chunk(event, comment=True),)
        if seen.type == "message_stop":
            end = Chunk(event, done=True)
            return (Chunk(b"", finished=1), end) if self._stopped else (end,)
        usage = self._count(seen.usage if seen.message is None else seen.message.usage)
        if seen.type == "message_delta":
            self._stopped = self._stopped or bool(seen.delta and seen.delta.stop_reason)
        opens = seen.type in _OPENING and (
            seen.content_block is None or seen.content_block.type in ("text", "thinking")
        )
        return (Chunk(event, usage=usage, opening=opens),)

    def _count(self, raw: Raw) -> Usage | None:
        """The counts so far: those of the prompt come first, those of the answer last, and some servers say both."""
        found: _Usage | None = answers.told(_usage, raw)
        if found is None:
            return None
        known = self._used
        self._used = _Usage(
            *(
                getattr(known, name) if getattr(found, name) is None else getattr(found, name)
                for name in _Usage.__struct_fields__
            )
        )
        return _sum(self._used)

    @staticmethod
    def usage_of(body: bytes) -> Usage | None:
        """The counts of a whole answer. Raises `UpstreamFault` for one that tells of an error, `ValueError`."""
        whole: _Whole = answers.decoded(_whole, body)
        if whole.error and answers.is_error(whole.error, beside=bool(whole.content)):
            raise fault(whole.error)
        found: _Usage | None = answers.told(_usage, whole.usage)
        return None if found is None else _sum(found)


def fault(raw: Raw) -> UpstreamFault:
    """Read the `error` of an answer or event, Anthropic's or one in OpenAI's words."""
    try:
        error: _Error = answers.decoded(_error, raw)
    except (ValueError, RecursionError):
        return answers.fault(raw)
    status = STATUS.get(error.type)
    return answers.fault(raw) if status is None else UpstreamFault(status, error.message)


def _sum(used: _Usage) -> Usage | None:
    """Tokens that come from the cache, or go there, are counted apart from the others of the prompt."""
    if used.input_tokens is None:
        return None
    cached, written = used.cache_read_input_tokens, used.cache_creation_input_tokens or 0
    return answers.counted(used.input_tokens + (cached or 0) + written, used.output_tokens or 0, cached)
