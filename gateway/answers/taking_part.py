"""Which calls take part in the response cache: what they say of it, and whether their answers can be kept."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from backends.api import Call
from backends.asked import NESTED
from gateway.config.caching import ResponseCacheSpec
from gateway.core.errors import BadRequest

HEADER: Final = b"x-trunkline-cache"
Wish = Literal["", "use", "refresh", "no-store"]
_WISHES: Final[dict[bytes, Wish]] = {b"use": "use", b"refresh": "refresh", b"no-store": "no-store"}
TEXT: Final = frozenset(
    {"chat/completions", "completions", "responses", "messages", "generate", "generate/root"},
)
"""Endpoints whose answers a model makes up."""
NUMBERS: Final = frozenset({"embeddings", "rerank", "score"})
"""Endpoints whose answers are computed: the same for the same input."""
MOST_BODY: Final = 1024**2
"""Bytes; to look for the answer to a larger call takes the time of others."""
_STATEFUL: Final = ("previous_response_id", "conversation", "background")
"""Fields that make an answer a part of what a server keeps."""
_WORLDLY: Final = ("web_search_options", "mcp_servers", "prompt")
"""Fields of chats that let a server ask others."""
_NOTHING: Final = (b"null", b"false", b"", b"[]")


class _Tool(Struct):
    type: str = "function"


_tools = msgspec.json.Decoder(list[_Tool])
_number = msgspec.json.Decoder(float)
_nested = msgspec.json.Decoder(dict[str, Raw])


def wish_of(headers: dict[bytes, bytes]) -> Wish:
    """What the call says of the cache; empty: nothing. Raises `BadRequest`."""
    said = headers.get(HEADER)
    if said is None:
        return ""
    if (wish := _WISHES.get(said.strip().lower())) is None:
        allowed = ", ".join(f"'{word.decode()}'" for word in _WISHES)
        raise BadRequest(f"The header '{HEADER.decode()}' can be {allowed}.", param=HEADER.decode())
    return wish


def obstacle(call: Call, spec: ResponseCacheSpec, wish: Wish) -> str:
    """Why the call takes no part, in a few words; empty: it does."""
    if wish == "no-store":
        return "the call says no-store"
    if why := _never(call):
        return why
    if wish:
        return ""
    return "the call does not ask for it" if spec.calls == "asked" else _undetermined(call)


def _never(call: Call) -> str:
    """Why no wish makes the call take part; empty: one does."""
    if call.endpoint not in TEXT and call.endpoint not in NUMBERS:
        return f"answers of {call.endpoint!r} are not kept"
    if len(call.body.raw) > MOST_BODY:
        return f"its body is larger than {MOST_BODY} bytes"
    fields = call.body.fields
    if call.endpoint == "responses":
        for name in _STATEFUL:
            if bytes(fields.get(name, b"")) not in _NOTHING:
                return f"{name!r} makes its answer a part of what a server keeps"
        if bytes(fields.get("store", b"")) == b"true":
            return "'store' makes its answer a part of what a server keeps"
    return ""


def _undetermined(call: Call) -> str:
    """Why its answer may be another one each time; empty: it is the same."""
    if call.endpoint in NUMBERS:
        return ""
    fields = call.body.fields
    if call.endpoint in NESTED:
        fields = _fields(fields.get(NESTED[call.endpoint]))
    greedy = _is_number(fields.get("temperature"), 0.0) or bytes(fields.get("do_sample", b"")) == b"false"
    if not greedy and not _is_number(fields.get("seed")):
        return "neither 'temperature' is 0 nor a 'seed' is given"
    if call.asked.media:
        return "it holds images or recordings, which may be links to what changes"
    if call.endpoint != "completions":
        for name in _WORLDLY:
            if bytes(fields.get(name, b"")) not in _NOTHING:
                return f"{name!r} lets others take part in its answer"
        if not _all_functions(fields.get("tools")):
            return "a tool of the server's takes part in its answer"
    return ""


def _is_number(raw: Raw | None, value: float | None = None) -> bool:
    """Whether a field is a number; and this one, if one is given."""
    if raw is None:
        return False
    try:
        found = _number.decode(raw)
    except msgspec.DecodeError:
        return False
    return value is None or found == value


def _all_functions(raw: Raw | None) -> bool:
    """Whether all tools are the caller's own."""
    if raw is None or bytes(raw) == b"null":
        return True
    try:
        return all(tool.type in ("function", "custom") for tool in _tools.decode(raw))
    except (msgspec.DecodeError, RecursionError):
        return False


def _fields(raw: Raw | None) -> dict[str, Raw]:
    try:
        return {} if raw is None else _nested.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return {}
