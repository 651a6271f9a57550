"""A system prompt of the operator's in the calls of a route or a key: it goes before what the caller says there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct

from backends.body import Body, Malformed

BETWEEN: Final = "\n\n"
FIELDS: Final = {
    "chat/completions": "messages",
    "messages": "system",
    "messages/count_tokens": "system",
    "responses": "instructions",
}
"""Where it stands, in the calls that have one."""
_SPEAKERS: Final = ("system", "developer")
_BLANKS: Final = b" \t\r\n"


class _First(Struct, array_like=True, gc=False):
    message: Raw = Raw()


class _Message(Struct, gc=False):
    role: str | None = None
    content: Raw = Raw()


_first = msgspec.json.Decoder(_First)
_message = msgspec.json.Decoder(_Message)


def with_prompt(endpoint: str, fields: Mapping[str, Raw], prompt: str) -> dict[str, bytes]:
    """The field of a call that has the system prompt, with this one before the caller's own; empty: it has none, or
    cannot be read, which its target will say."""
    name = FIELDS.get(endpoint, "")
    given = bytes(fields.get(name, b"null"))
    if not name:
        return {}
    made = _messages(given, prompt) if name == "messages" else _joined(given, prompt, lists=name == "system")
    return {} if made is None else {name: made}


def _joined(given: bytes, prompt: str, *, lists: bool) -> bytes | None:
    """A prompt that is a text, or where there can be `lists`, one of parts."""
    if given == b"null":
        return msgspec.json.encode(prompt)
    if given.startswith(b'"'):
        return msgspec.json.encode(prompt + BETWEEN)[:-1] + given[1:]
    if lists and given.startswith(b"["):
        return _before(given, b'{"type":"text","text":%b}' % msgspec.json.encode(prompt))
    return None


def _messages(given: bytes, prompt: str) -> bytes | None:
    """Many chat templates take one system message, and only at the beginning: the caller's gets longer."""
    if not given.startswith(b"["):
        return None
    new = b'{"role":"system","content":%b}' % msgspec.json.encode(prompt)
    try:
        first = bytes(_first.decode(given).message)
        message = _message.decode(first) if first.startswith(b"{") else _Message()
        if message.role not in _SPEAKERS:
            return _before(given, new)
        content = _joined(bytes(message.content) or b"null", prompt, lists=True)
        if content is None:
            return None
        changed = Body(first).spliced({"content": content})
    except (msgspec.DecodeError, RecursionError, Malformed):
        return None
    start = given.index(first[:1], 1)
    return b"".join((given[:start], changed, memoryview(given)[start + len(first) :]))


def _before(given: bytes, part: bytes) -> bytes:
    """The list with one more part at its beginning."""
    rest = given[1:].lstrip(_BLANKS)
    return b"".join((b"[", part, b"" if rest.startswith(b"]") else b",", rest))
