"""Reads answers of OpenAI's `/v1/responses`: the events of one stream, and the usage of a whole answer."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct

from backends import answers, sse
from backends.api import Call, Chunk, UpstreamFault, Usage

_TEXTS = re.compile(rb'"delta":\s?"([^"\\]*+(?:\\.[^"\\]*+)*+)"')
_OPENING: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_part.added",
        "response.reasoning_summary_part.added",
    }
)
_SPEAKS: Final = ("", "message", "reasoning")
"""Kinds of items that say nothing yet when they are added."""
_STATUS: Final = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
    "invalid_prompt": 400,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
}
"""Of an error's code, or type."""


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None


class _Response(Struct):
    id: Raw = Raw()
    usage: Raw = Raw()
    error: Raw = Raw()


class _Typed(Struct):
    type: str = ""


class _Event(Struct):
    type: str = ""
    response: _Response | None = None
    item: _Typed | None = None
    error: Raw = Raw()
    code: Raw = Raw()
    message: Raw = Raw()


class _Error(Struct):
    message: str | None = None
    code: str | int | None = None
    type: str | None = None
    param: str | None = None


class _Whole(Struct):
    status: Raw = Raw()
    usage: Raw = Raw()
    error: Raw = Raw()
    output: Raw = Raw()


_event = msgspec.json.Decoder(_Event)
_whole = msgspec.json.Decoder(_Whole)
_usage = msgspec.json.Decoder(_Usage)
_error = msgspec.json.Decoder(_Error)


class Responses:
    """One stream. It ends well with `response.completed` or `response.incomplete`."""

    __slots__ = ()

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        """Read one event. Raises `UpstreamFault` for one that tells of a failure, `ValueError` for nonsense."""
        data = sse.data(event)
        if not data:
            return (Chunk(event, comment=True),)
        if data == b"[DONE]":
            return (Chunk(event, done=True),)
        seen: _Event = answers.decoded(_event, data)
        kind = seen.type
        if kind.endswith(".delta"):
            return (Chunk(event, 1, text=sum(map(len, _TEXTS.findall(data)))),)
        if kind in ("response.completed", "response.incomplete"):
            usage = None if seen.response is None else _counts(seen.response.usage)
            return (Chunk(b"", finished=1, usage=usage), Chunk(event, done=True))
        if kind == "response.failed":
            raise fault(Raw(b"{}") if seen.response is None else seen.response.error)
        if kind == "error":
            raise fault(seen.error or Raw(data))
        if not kind and seen.error and seen.error != answers.NULL:
            raise fault(seen.error)
        opens = kind in _OPENING and (seen.item is None or seen.item.type in _SPEAKS)
        return (Chunk(event, opening=opens),)

    @staticmethod
    def usage_of(body: bytes) -> Usage | None:
        """The counts of a whole answer. Raises `UpstreamFault` for one that tells of an error, `ValueError`."""
        whole: _Whole = answers.decoded(_whole, body)
        if bytes(whole.status) == b'"failed"' or (
            whole.error and answers.is_error(whole.error, beside=bool(whole.output))
        ):
            raise fault(whole.error)
        return _counts(whole.usage)


def fault(raw: Raw) -> UpstreamFault:
    """Read the error of an answer or event."""
    try:
        error: _Error = answers.decoded(_error, raw)
    except (ValueError, RecursionError):
        return answers.fault(raw) if raw else UpstreamFault(500, "")
    status = next((_STATUS[word] for word in (error.code, error.type) if isinstance(word, str) and word in _STATUS), 0)
    return UpstreamFault(status, error.message or "", param=error.param) if status else answers.fault(raw)


def _counts(raw: Raw) -> Usage | None:
    found: _Usage | None = answers.told(_usage, raw)
    if found is None or found.input_tokens is None:
        return None
    details = found.input_tokens_details
    cached = None if details is None else details.cached_tokens
    return answers.counted(found.input_tokens, found.output_tokens or 0, cached)
