"""Reads what the gateway must know of an answer in OpenAI's language, and lets everything else be as odd as it likes.

Only what makes an answer unreadable for its client is an error here: no JSON object, `choices` that are no list of
objects. Numbers that only metering needs count when they can be read, and otherwise nobody asks for them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from backends.api import UpstreamFault, Usage

_NUMBER = re.compile(r"[0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_MOST: Final = 1 << 53
"""No count is larger; a larger one would also be one that not every reader of JSON takes for a whole number."""
_COUNTS: Final = (b'"', *(b"%d" % digit for digit in range(10)))
"""With which the JSON of a count may begin."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_NOT_FINITE = re.compile(rb"(?<=[\s:,\[])(?:-?Infinity|NaN)(?=[\s,\]}])")
NULL: Final = Raw(b"null")
_INFINITE = re.compile(rb"[0-9][eE]\+?[0-9]{3}")
"""Numbers that may be beyond what floats can hold."""
_EMPTY: Final[tuple[object, ...]] = (None, "", False, 0, [], {})


class _Choice(Struct):
    index: int = 0
    finish_reason: str | None = None


class _OddChoice(Struct):
    index: Raw = Raw()
    finish_reason: Raw = Raw()


class _Answer(Struct):
    usage: Raw = Raw()
    error: Raw = Raw()
    choices: Raw = Raw()
    data: Raw = Raw()


class Event(Struct):
    """What a stream's event says; `choices` is None where it has none, `usage` and `error` are undecoded JSON."""

    choices: list[_Choice] | None = None
    usage: Raw = Raw()
    error: Raw = Raw()


class _OddEvent(Event):
    choices: list[_OddChoice] | None = None  # type: ignore[assignment] # what is read of it becomes a `_Choice`


class _Delta(Struct):
    delta: dict[str, Raw] = {}


class _Openings(Struct):
    choices: list[_Delta] = []


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Error(Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: int | str | None = None
    http_status_code: int | None = None


class _Refusal(Struct):
    error: _Error


_answer = msgspec.json.Decoder(_Answer)
_refusal = msgspec.json.Decoder(_Refusal)
_event = msgspec.json.Decoder(Event)
_odd_event = msgspec.json.Decoder(_OddEvent)
_openings = msgspec.json.Decoder(_Openings)
_usage = msgspec.json.Decoder(_Usage)
_error = msgspec.json.Decoder(_Error | str)
_members = msgspec.json.Decoder(dict[str, Raw])
_anything = msgspec.json.Decoder()

_MISTAKES = re.compile(
    r"\w+ input is not supported"
    r"|Failed to parse (?:messages|tools)\b"
    r"|Unknown reasoning format\b"
    r"|input \(\d+ tokens\) is too large to process"
)
"""How llama.cpp words what its callers do wrong where it answers 500; behind which name its servers stand nobody knows.
Its other texts of a 500 are its own failures, those of its JSON library too, which may be about its answer."""
_CALLERS: Final = frozenset({"invalid_request_error", "BadRequestError", "NotFoundError", "validation_error"})
"""Types of errors that are a caller's, whatever their status is."""

_SILENCES = (b"null", b'""', b"[]")
"""Values of a delta's fields that say nothing."""


def answer_usage(body: bytes) -> Usage | None:
    """The counts of a whole answer. Raises `UpstreamFault` when it tells of an error, `ValueError` when it is none."""
    try:
        answer = _answer.decode(body)
    except msgspec.DecodeError:
        answer = decoded(_answer, body)
    if answer.error and is_error(answer.error, beside=bool(answer.choices or answer.data or answer.usage)):
        raise fault(answer.error)
    return usage(answer.usage)


def event(data: bytes) -> Event:
    """Read an event's data. Raises `ValueError` when it is not understood."""
    try:
        return _event.decode(data)
    except msgspec.DecodeError:
        pass
    try:
        seen: Event = decoded(_event, data)
        return seen
    except msgspec.ValidationError:  # an index, or a reason, of another type
        odd = decoded(_odd_event, data)
    choices = odd.choices and [_Choice(whole(each.index) or 0, _reason(each.finish_reason)) for each in odd.choices]
    return Event(choices, odd.usage, odd.error)


def opens(data: bytes) -> bool:
    """Whether an event's choices name the role that will speak, and say nothing yet."""
    try:
        choices = decoded(_openings, data).choices
    except ValueError:
        return False
    return bool(choices) and all(
        "role" in choice.delta
        and all(name == "role" or bytes(value) in _SILENCES for name, value in choice.delta.items())
        for choice in choices
    )


def usage(raw: Raw) -> Usage | None:
    """The counts of a usage object; None when there is none, or it holds none that can be read."""
    if not raw or raw == NULL:
        return None
    try:
        counts = _usage.decode(raw)
    except ValueError:
        return _odd_usage(raw)
    prompt, completion, details = counts.prompt_tokens, counts.completion_tokens or 0, counts.prompt_tokens_details
    if prompt is None or not 0 <= prompt <= _MOST or not 0 <= completion <= _MOST:
        return None
    return Usage(prompt, completion, None if details is None else details.cached_tokens)


def told(decoder: msgspec.json.Decoder[Any], raw: Raw) -> Any:
    """What a part says that only metering needs; None: it is missing, null, or not understood."""
    if not raw or raw == NULL:
        return None
    try:
        return decoded(decoder, raw)
    except (ValueError, RecursionError):
        return None


def counted(prompt: int, completion: int, cached: int | None) -> Usage | None:
    """Counts that an answer can have; None for others."""
    possible = all(0 <= count <= _MOST for count in (prompt, completion, cached or 0))
    return Usage(prompt, completion, cached) if possible else None


def is_error(raw: Raw, *, beside: bool) -> bool:
    """Whether the `error` member of an answer tells of one, as `is_error_value`, of undecoded JSON."""
    if raw == NULL:
        return False
    try:
        return is_error_value(parsed(raw), beside=beside)
    except (ValueError, RecursionError):
        return True


def is_error_value(value: Any, *, beside: bool) -> bool:
    """Whether the `error` member of an answer tells of one.

    Some servers send an empty one with every answer: `beside` says that there is something else that it may belong to.
    """
    if value is None or not beside:
        return value is not None
    return value not in _EMPTY and not (isinstance(value, dict) and all(each in _EMPTY for each in value.values()))


def fault(raw: Raw) -> UpstreamFault:
    """Read the `error` member of an answer or event, an object or a bare string."""
    try:
        error = decoded(_error, raw)
    except ValueError:
        return UpstreamFault(500, "")
    if isinstance(error, str):
        return UpstreamFault(500, error)
    code = error.http_status_code or error.code
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    if status == 500 and _MISTAKES.match(error.message):
        status = 400
    return UpstreamFault(status, error.message, param=error.param)


def mistake(body: bytes) -> str | None:
    """What an answer of status 500 says of the call, if it says that the call is at fault; None: the server is."""
    try:
        error = decoded(_refusal, body).error
    except (ValueError, RecursionError):
        return None
    blames = error.type in _CALLERS or (isinstance(error.code, int) and error.code in (400, 404, 413, 415, 422))
    return error.message if error.message and (blames or _MISTAKES.match(error.message)) else None


def members(data: bytes) -> dict[str, bytes]:
    """An object's members as JSON, byte for byte where it is JSON by the letter. Raises `ValueError`."""
    try:
        return {name: bytes(value) for name, value in _members.decode(data).items()}
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return {name: encoded(value, data) for name, value in parsed(data).items()}


def parsed(data: bytes | Raw) -> Any:
    """JSON as Python and JavaScript read it: with NaN and infinities, and with halves of surrogate pairs.

    Raises `ValueError`.
    """
    try:
        return _anything.decode(data)
    except msgspec.DecodeError:
        return json.loads(bytes(data).decode())


def encoded(value: Any, like: bytes) -> bytes:
    """What `parsed` has made of `like`, or of a part of it, as JSON again."""
    if _SURROGATE.search(like) or _NOT_FINITE.search(like) or _INFINITE.search(like):
        return json.dumps(value, separators=(",", ":")).encode()
    return msgspec.json.encode(value)


def decoded(decoder: msgspec.json.Decoder[Any], data: bytes | Raw) -> Any:
    """Decode JSON as `parsed` takes it. In what is decoded, NaN and infinities are null, half a pair is a blank.

    Raises `ValueError`.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        plain = _NOT_FINITE.sub(b"null", _SURROGATE.sub(rb"\\u0020", bytes(data)))
        if plain == data:
            raise
        return decoder.decode(plain)


def count(value: Any) -> int | None:
    """A count, be it a number or text: 3, 3.0, "3"; None for all that is no count."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = int(value) if value.strip().isdigit() else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return None
    return int(value) if value == int(value) else None


def whole(raw: bytes | Raw) -> int | None:
    """As `count`, of undecoded JSON."""
    try:
        return count(parsed(raw)) if bytes(raw)[:1] in _COUNTS else None
    except ValueError:
        return None


def _odd_usage(raw: Raw) -> Usage | None:
    """The counts of a usage object in which something is not what it should be."""
    try:
        counts = decoded(_members, raw)
    except ValueError:
        return None
    prompt = whole(counts.get("prompt_tokens", b""))
    made = bytes(counts.get("completion_tokens", b"null"))
    completion = 0 if made == b"null" else whole(made)
    if prompt is None or completion is None:
        return None
    try:
        details = decoded(_members, counts.get("prompt_tokens_details", b"{}"))
    except ValueError:
        details = {}
    return Usage(prompt, completion, whole(details.get("cached_tokens", b"")))


def _reason(raw: Raw) -> str | None:
    """A reason of any type: what counts is that there is one."""
    return None if bytes(raw) in (b"", b"null", b'""', b"false") else "odd"
