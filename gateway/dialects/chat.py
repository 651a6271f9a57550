"""Chat answers and events as the dialects read them.

Texts stay JSON, so that what a model says goes on byte for byte; only halves of surrogate pairs become blanks.
The inside of a string is what stands between its quotes: insides can be joined, and put into other JSON as they are.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw, Struct

from backends import answers
from backends.api import UpstreamFault, Usage

BROKEN: Final = frozenset({"abort", "error"})
"""Reasons for an end that are none: something kept the server from going on."""


class Function(Struct):
    """The function of a tool call: its name, and its arguments or a piece of them as a JSON string."""

    name: str | None = None
    arguments: Raw = Raw()


class ToolCall(Struct):
    """A tool call, or a piece of the one of this index."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Said(Struct):
    """What an answer says, or an event adds to it."""

    content: Raw = Raw()
    refusal: Raw = Raw()
    reasoning: Raw = Raw()
    reasoning_content: Raw = Raw()
    tool_calls: list[ToolCall] | None = None

    @property
    def thought(self) -> bytes:
        """The inside of its reasoning, which has two names."""
        return inside(self.reasoning) or inside(self.reasoning_content)


class Choice(Struct):
    """One choice: `message` of a whole answer, `delta` of an event, `text` of a completion."""

    index: int = 0
    message: Said | None = None
    delta: Said | None = None
    text: Raw = Raw()
    finish_reason: str | None = None
    stop_reason: Raw = Raw()
    """vLLM: the stop sequence that ended it, or a token's id."""
    logprobs: Raw = Raw()
    token_ids: list[int] | None = None
    """vLLM, where asked for: the ids of its tokens."""


class Answer(Struct):
    """A whole answer, or one event."""

    id: str | None = None
    created: int | float | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: Raw = Raw()


class Counts(Struct, frozen=True):
    """Tokens, as the server counted them."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    """Of the prompt's, those that came out of a cache."""
    reasoning: int | None = None
    """Of the answer's, those that were thought; None: it does not tell."""


class _Details(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    completion_tokens_details: _Details | None = None


_answer = msgspec.json.Decoder(Answer)
_usage = msgspec.json.Decoder(_Usage)
_NULLS: Final = (b"", b"null")


def read(data: bytes) -> Answer:
    """An answer, or the data of an event. Raises `ValueError` when it is not built as one."""
    answer: Answer = answers.decoded(_answer, data)
    return answer


def inside(raw: Raw) -> bytes:
    """The inside of a string; empty for null. What is no string becomes one that holds its JSON."""
    value = bytes(raw)
    if value[:1] == b'"':
        return value[1:-1]
    return b"" if value in _NULLS else msgspec.json.encode(value.decode())[1:-1]


def string(inside: bytes) -> Raw:
    """The string of this inside."""
    return Raw(b'"' + inside + b'"')


def text_of(inside: bytes) -> str:
    """The text of an inside."""
    text: str = answers.decoded(_text, b'"' + inside + b'"')
    return text


_text = msgspec.json.Decoder(str)


def counts(raw: Raw) -> Counts | None:
    """A usage object's counts; None where there is none."""
    usage = answers.usage(raw)
    return None if usage is None else Counts(**_told(usage), reasoning=_reasoning(raw))


def _told(usage: Usage) -> dict[str, int]:
    cached = min(max(usage.cached_tokens or 0, 0), usage.prompt_tokens)
    return {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens, "cached": cached}


def _reasoning(raw: Raw) -> int | None:
    try:
        details = answers.decoded(_usage, raw).completion_tokens_details
    except ValueError:
        return None
    return None if details is None else details.reasoning_tokens


def ended(reason: str) -> str:
    """The reason for an answer's end. Raises `UpstreamFault` for one that says that the server could not go on."""
    if reason in BROKEN:
        raise UpstreamFault(500, f"the server ended the answer with {reason!r}")
    return reason
