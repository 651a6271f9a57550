"""Endpoints that a server has beside OpenAI's three: the client's bytes go on, except for the model's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from backends import answers
from backends.api import Adapter, Call, Chunk, Reply, RequestRefused, StreamReader, Target, UpstreamRequest, Usage
from backends.endpoints import UNCOUNTED, Endpoint
from backends.messages import STATUS, Messages
from backends.responses import Responses

NOTHING: Final = Usage()
"""What is used up where no model works."""


def unnamed(call: Call) -> bool:
    """It asks for a default, and names no model itself."""
    return bytes(call.body.fields.get("model", b"null")) in (b"null", b'""')


class Native:
    """An endpoint whose answers come whole. `path` is where the server has it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        changes = self.changes(call)
        if unnamed(call) or (target.model is not None and target.model != call.model):
            changes["model"] = msgspec.json.encode(target.model or call.model)
        body = call.body.spliced(changes) if changes else call.body.raw
        headers = {"content-type": call.content_type}
        if target.api_key is not None:
            headers["authorization"] = "Bearer " + target.api_key
        return UpstreamRequest(self.path, headers, body)

    def changes(self, call: Call) -> dict[str, bytes]:
        """What else is written into the body: JSON by field. Raises `RequestRefused`."""
        return {}

    def reply(self, call: Call, body: bytes) -> Reply:
        used = answers.answer_usage(body)
        return Reply(body, NOTHING if call.endpoint in UNCOUNTED else used)

    def chunk(self, call: Call, event: bytes) -> Iterable[Chunk]:
        raise ValueError("this endpoint has no streams")

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """As the server said it, if it said it in JSON; that it has no such endpoint, in words that name it."""
        try:
            body.decode()  # msgspec does not look into strings that it skips
            said = msgspec.json.decode(body, type=dict[str, Raw])
        except (ValueError, RecursionError):
            return None
        if status == 404 and "error" not in said:
            words = f"The server of this model has no endpoint {call.endpoint!r}."
            return status, msgspec.json.encode({"detail": words})
        return status, body

    def mistake(self, call: Call, body: bytes) -> str | None:
        return answers.mistake(body)


class NativeMessages(Native):
    """Anthropic's `/v1/messages`."""

    def reply(self, call: Call, body: bytes) -> Reply:
        return Reply(body, Messages.usage_of(body))

    def open(self, call: Call) -> StreamReader:
        return Messages()

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """Some servers refuse a few mistakes in OpenAI's words on this path, too."""
        own = super().refusal(call, status, body)
        if own is None or b'"error"' not in own[1]:
            return own
        said = answers.parsed(own[1])
        error = said.get("error")
        if not isinstance(error, dict) or said.get("type") == "error":
            return own
        kind = next((kind for kind, known in STATUS.items() if known == status), "invalid_request_error")
        error = {"type": kind, "message": f"{error.get('message') or ''}"}
        return status, msgspec.json.encode({"type": "error", "error": error})


class NativeResponses(Native):
    """OpenAI's `/v1/responses`. Nothing is kept at the server unless the client says so."""

    def changes(self, call: Call) -> dict[str, bytes]:
        fields = call.body.fields
        if bytes(fields.get("background", b"false")) not in (b"false", b"null"):
            raise RequestRefused("'background' is not taken: ask for a stream, or use a batch", param="background")
        return {} if "store" in fields and bytes(fields["store"]) != b"null" else {"store": b"false"}

    def reply(self, call: Call, body: bytes) -> Reply:
        return Reply(body, Responses.usage_of(body))

    def open(self, call: Call) -> StreamReader:
        return Responses()


class StoredResponses(Native):
    """What is done with a response that the server keeps."""

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        headers = {} if target.api_key is None else {"authorization": "Bearer " + target.api_key}
        return UpstreamRequest("/v1/responses/" + call.item, headers, b"", call.method)

    def reply(self, call: Call, body: bytes) -> Reply:
        return Reply(body, NOTHING)  # what it took was charged when it was made

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """Most servers cannot do all of it."""
        own = super().refusal(call, status, body)
        if status in (404, 405, 501) and (own is None or b'"error"' not in own[1]):
            words = f"The server of this model cannot {_WHAT.get(call.method, 'do that with')} responses"
            return 404, msgspec.json.encode({"detail": words + " that it keeps."})
        return own


_WHAT: Final = {"GET": "show", "DELETE": "delete", "POST": "stop"}
_KINDS: Final[dict[Endpoint, type[Native]]] = {
    "messages": NativeMessages,
    "responses": NativeResponses,
    "responses/stored": StoredResponses,
}
_PATHS: Final[dict[Endpoint, str]] = {"tokenize": "/tokenize", "detokenize": "/detokenize"}


def natives(*endpoints: Endpoint) -> Mapping[Endpoint, Adapter]:
    """Who speaks for these endpoints of a server that has them where most servers do."""
    return {each: _KINDS.get(each, Native)(_PATHS.get(each, f"/v1/{each}")) for each in endpoints}
