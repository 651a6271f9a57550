"""Adapter for any server that speaks OpenAI's language, and the base of those that nearly do."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct

from backends import sse
from backends.api import Call, Chunk, Facts, Reply, RequestRefused, Target, UpstreamFault, UpstreamRequest, Usage
from backends.facts import MODELS, listed

USAGE_WANTED = b'{"include_usage":true}'


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Answer(Struct):
    usage: _Usage | None = None
    error: Raw = Raw()


class _Choice(Struct):
    index: int = 0
    finish_reason: str | None = None


class _Opening(Struct):
    delta: dict[str, Raw] = {}


class _Openings(Struct):
    choices: list[_Opening] = []


class _Event(_Answer):
    choices: list[_Choice] | None = None


class _Error(Struct):
    message: str = ""
    param: str | None = None
    code: int | str | None = None
    http_status_code: int | None = None


_NULL = Raw(b"null")
_NOTHING = _Event()
_SILENCES = (b"null", b'""', b"[]")
"""Values of a delta's fields that say nothing."""
_answer = msgspec.json.Decoder(_Answer)
_event = msgspec.json.Decoder(_Event)
_openings = msgspec.json.Decoder(_Openings)

_REQUIRED = {"chat/completions": "messages", "completions": "prompt", "embeddings": "input"}


class OpenAI:
    """The client's bytes go on as they are, except for the model's name and the wish for a usage event."""

    probe_path = MODELS
    path_prefix = "/v1/"
    fact_paths: tuple[str, ...] = (MODELS,)

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        self.check(call)
        changes: dict[str, bytes] = {}
        if target.model is not None and target.model != call.model:
            changes["model"] = msgspec.json.encode(target.model)
        if call.stream and not call.include_usage and _REQUIRED[call.endpoint] in call.body.fields:
            changes["stream_options"] = self._stream_options(call)
        body = call.body.spliced(changes) if changes else call.body.raw
        return UpstreamRequest(self.path_prefix + call.endpoint, self.headers(call, target), body)

    def headers(self, call: Call, target: Target) -> dict[str, str]:
        headers = {"content-type": call.content_type}
        if target.api_key is not None:
            headers["authorization"] = "Bearer " + target.api_key
        return headers

    def check(self, call: Call) -> None:
        """Refuse what every server of this kind would, in words that name the field."""
        name = _REQUIRED[call.endpoint]
        value = call.body.fields.get(name, _NULL)
        if value == _NULL:
            raise RequestRefused(f"the field {name!r} is required", param=name)
        if name == "messages" and bytes(memoryview(value)[:1]) != b"[":
            raise RequestRefused("'messages' must be a list", param=name)

    def reply(self, call: Call, body: bytes) -> Reply:
        answer = _answer.decode(body)
        if answer.error and answer.error != _NULL:
            raise fault(answer.error)
        return Reply(body, usage(answer.usage))

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        if event.startswith(b"data: {"):  # nearly all events are the next piece of one choice: this is their short way
            try:
                seen = _event.decode(event[6:])
            except (msgspec.DecodeError, RecursionError):
                seen = _NOTHING  # perhaps of several lines; the long way tells
            choices, special = seen.choices, seen.error or seen.usage is not None
            if choices and len(choices) == 1 and choices[0].finish_reason is None and not special:
                if b'"role"' in event and _opens(event[6:]):
                    return (Chunk(event, choice=choices[0].index, opening=True),)
                return (Chunk(event, 1, choice=choices[0].index),)
        data = sse.data(event)
        if data.startswith(b"{"):
            return (self._read(call, event, data),)
        if data == b"[DONE]":
            return (Chunk(event, done=True),)
        if data:
            raise ValueError("an event's data is not a JSON object")
        return (Chunk(event, comment=True),)

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """Pass on what the server said, if it said it in JSON."""
        try:
            body.decode()  # msgspec does not look into strings that it skips
            msgspec.json.decode(body, type=dict[str, Raw])
        except (ValueError, RecursionError):
            return None
        return status, body

    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        return listed(answers, model)

    def _read(self, call: Call, event: bytes, data: bytes) -> Chunk:
        seen = _event.decode(data)
        if seen.error and seen.error != _NULL:
            raise fault(seen.error)
        if seen.usage is not None and not seen.choices and not call.include_usage:
            return Chunk(b"", usage=usage(seen.usage))  # asked for by us, not by the client
        choices = seen.choices or ()
        finished = sum(1 for choice in choices if choice.finish_reason)
        counted = None if seen.usage is None else usage(seen.usage)
        highest = max((choice.index for choice in choices), default=0)
        if not finished and b'"role"' in event and _opens(data):
            return Chunk(event, usage=counted, choice=highest, opening=True)
        return Chunk(event, tokens=len(choices), usage=counted, finished=finished, choice=highest)

    def _stream_options(self, call: Call) -> bytes:
        given = call.body.fields.get("stream_options")
        if given is None or bytes(given) == b"null":
            return USAGE_WANTED
        options = msgspec.json.decode(given, type=dict[str, Raw])
        options.pop("continuous_usage_stats", None)  # means nothing without include_usage, and much with it
        return msgspec.json.encode({**options, "include_usage": True})


def _opens(data: bytes) -> bool:
    """Whether an event's choices name the role that will speak, and say nothing yet."""
    try:
        choices = _openings.decode(data).choices
    except msgspec.DecodeError:
        return False
    return bool(choices) and all(
        "role" in choice.delta
        and all(name == "role" or bytes(value) in _SILENCES for name, value in choice.delta.items())
        for choice in choices
    )


def usage(seen: _Usage | None) -> Usage | None:
    """The counts of a usage object; None when it is absent or holds none."""
    if seen is None or seen.prompt_tokens is None:
        return None
    details = seen.prompt_tokens_details
    return Usage(seen.prompt_tokens, seen.completion_tokens or 0, details.cached_tokens if details else None)


def fault(raw: Raw) -> UpstreamFault:
    """Read the `error` member of an answer or event, an object or a bare string."""
    try:
        error = msgspec.json.decode(raw, type=_Error | str)
    except msgspec.ValidationError:
        return UpstreamFault(500, "")
    if isinstance(error, str):
        return UpstreamFault(500, error)
    code = error.http_status_code or error.code
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return UpstreamFault(status, error.message, param=error.param)
