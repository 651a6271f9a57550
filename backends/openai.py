"""Adapter for any server that speaks OpenAI's language, and the base of those that nearly do."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from backends import answers, continuous, sse
from backends.api import Adapter, Call, Chunk, Facts, Reply, RequestRefused, StreamReader, Target, UpstreamRequest
from backends.endpoints import COMMON, Endpoint
from backends.events import TEXTS, Events
from backends.facts import MODELS, listed
from backends.native import natives

USAGE_WANTED = b'{"include_usage":true}'
ALL_USAGE_WANTED = b'{"include_usage":true,"continuous_usage_stats":true}'

_NULL = Raw(b"null")
NO_NAME = (_NULL, Raw(b'""'))
"""Models of calls that ask for a default."""
_REQUIRED = {"chat/completions": "messages", "completions": "prompt", "embeddings": "input"}


class OpenAI:
    """The client's bytes go on as they are, except for the model's name and the wish for a usage event."""

    probe_path = MODELS
    path_prefix = "/v1/"
    fact_paths: tuple[str, ...] = (MODELS,)
    inference_paths: tuple[str, ...] = ("/v1/chat/completions", "/v1/embeddings")

    def speaks(self, *more: Endpoint) -> Mapping[Endpoint, Adapter]:
        """Who speaks for the endpoints of a server that has these beside the common three."""
        return {**dict.fromkeys(COMMON, self), **natives(*more)}

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        self.check(call)
        changes: dict[str, bytes] = {}
        named = call.body.fields.get("model", _NULL) not in NO_NAME
        if (target.model is not None and target.model != call.model) or not named:
            changes["model"] = msgspec.json.encode(target.model or call.model)
        if (
            call.stream
            and target.usage_event
            and (target.continuous_usage or not call.include_usage)
            and _REQUIRED[call.endpoint] in call.body.fields
        ):
            changes["stream_options"] = self._stream_options(call, target)
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
        return Reply(body, answers.answer_usage(body))

    def open(self, call: Call) -> StreamReader:
        """An adapter with a `chunk` of its own gets to see every event."""
        return Events(self, call) if type(self).chunk is OpenAI.chunk else self

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        data = sse.data(event)
        if not data.startswith(b"{"):
            if data == b"[DONE]":
                return (Chunk(event, done=True),)
            if data:
                raise ValueError("an event's data is not a JSON object")
            return (Chunk(event, comment=True),)
        seen = answers.event(data)
        choices, usage = seen.choices or (), seen.usage
        if seen.error and answers.is_error(seen.error, beside=seen.choices is not None or bool(usage)):
            raise answers.fault(seen.error)
        counts = answers.usage(usage) if usage else None
        if not choices and not call.include_usage and usage and usage != answers.NULL:
            return (Chunk(b"", usage=counts),)  # asked for by us, not by the client
        finished, highest = 0, 0
        for choice in choices:
            finished += bool(choice.finish_reason)
            highest = max(highest, choice.index)
        if not finished and b'"role"' in event and answers.opens(data):
            return (Chunk(event, usage=counts, choice=highest, opening=True),)
        return (Chunk(event, len(choices), counts, finished, highest, text=sum(map(len, TEXTS.findall(event)))),)

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """Pass on what the server said, if it said it in JSON."""
        try:
            body.decode()  # msgspec does not look into strings that it skips
            msgspec.json.decode(body, type=dict[str, Raw])
        except (ValueError, RecursionError):
            return None
        return status, body

    def mistake(self, call: Call, body: bytes) -> str | None:
        return answers.mistake(body)

    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        return listed(answers, model)

    def _open_continuous(self, call: Call) -> StreamReader:
        """`ContinuousUsage.open_continuous`, for servers of which it is known that they can."""
        hides = not continuous.is_wanted(call)
        return Events(self, call, hides=hides) if type(self).chunk is OpenAI.chunk else self

    def _stream_options(self, call: Call, target: Target) -> bytes:
        given, always = call.body.fields.get("stream_options"), target.continuous_usage
        if given is None or bytes(given) == b"null":
            return ALL_USAGE_WANTED if always else USAGE_WANTED
        options = msgspec.json.decode(given, type=dict[str, Raw])
        options.pop(continuous.WISH, None)  # means nothing without include_usage, and much with it
        wishes = {"include_usage": True, continuous.WISH: True} if always else {"include_usage": True}
        return msgspec.json.encode({**options, **wishes})
