"""What routing reads of a call: how long its prompt is, and hashes of those parts that other calls may share."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Raw, Struct

from backends.api import Call
from backends.body import Malformed
from gateway.core.types import Priority
from gateway.routing.policies.api import Prompt

SESSION_HEADERS: Final = (b"x-session-id", b"x-session-affinity", b"session-id")
SURE: Final = 4
"""No text has fewer tokens than a fourth of the estimate, but for long rows of spaces."""
HEAD_BYTES: Final = 1024
"""Of a completion's prompt: nothing tells where its common part ends."""
LOW_PART: Final = 0.7
"""Calls of low priority go to a target only below this part of its room."""


class _Message(Struct):
    role: str | None = None
    content: Raw = Raw()


_messages = msgspec.json.Decoder(list[_Message])
_SYSTEM = ("system", "developer")


def read(
    call: Call,
    headers: Mapping[bytes, bytes],
    *,
    model: str,
    tenant: str,
    tokens: int,
    priority: Priority = "normal",
    keyed: bool = True,
    patient: bool = False,
) -> Prompt:
    """The prompt of `call`. `model` and `tenant` keep apart what no cache shares; `tokens` is the estimated length.

    `patient`: it can be held until a target is up. Without `keyed` nothing is looked for that only a choice among
    several targets needs.
    """
    part = LOW_PART if priority == "low" else 1.0
    context, least, alone = _context(call, tokens)
    if not keyed:
        return Prompt(
            tokens, context=context, least_context=least, alone=alone, whole=not call.stream, patient=patient, part=part
        )
    salt = _text(call, "cache_salt") or tenant.encode()
    base = (model.encode(), salt)
    named = next((value for name in SESSION_HEADERS if (value := headers.get(name))), b"")
    conversation, group, prefix, follow_up = _shared(call, base)
    user = named or _text(call, "prompt_cache_key") or _text(call, "user")
    return Prompt(
        tokens,
        _hash(*base, b"session", named) if named else conversation,
        group,
        int(tokens * prefix / max(1, len(call.body.raw))),
        follow_up,
        _hash(*base, b"session", user) if user else None,
        context,
        least,
        alone,
        not call.stream,
        patient,
        part,
    )


def _context(call: Call, tokens: int) -> tuple[int, int, int]:
    """Tokens of prompt and answer together, estimated and at the very least; and of the prompt alone.

    An embedding is of many prompts, and each has the context to itself: 0, as nothing is known of one.
    """
    if call.endpoint == "embeddings":
        return 0, 0, 0
    answer = max(_number(call, "max_tokens"), _number(call, "max_completion_tokens"))
    if call.endpoint == "completions" and not bytes(call.body.fields.get("prompt", b"")).startswith(b'"'):
        return answer, answer, 0
    return tokens + answer, tokens // SURE + answer, tokens


def _shared(call: Call, base: tuple[bytes, ...]) -> tuple[int | None, int | None, int, bool]:
    """Hashes of conversation and group, bytes of the group's part, and whether the prompt holds an answer already."""
    fields = call.body.fields
    if call.endpoint == "completions":
        text = bytes(fields.get("prompt", b""))
        # Long and short prompts that begin alike are other conversations: else one template would be one home.
        return _hash(*base, text[:HEAD_BYTES], b"%d" % (len(text) // HEAD_BYTES).bit_length()), None, 0, False
    if call.endpoint != "chat/completions" or "messages" not in fields:
        return None, None, 0, False
    try:
        messages = _messages.decode(fields["messages"])
    except (msgspec.DecodeError, RecursionError):
        return None, None, 0, False  # the target will say what is wrong with it
    parts = [bytes(fields.get("tools", b"")) or bytes(fields.get("functions", b""))]
    first = len(messages)
    for index, message in enumerate(messages):
        if message.role not in _SYSTEM:
            first = index
            break
        parts.append(bytes(message.content))
    question = next((bytes(each.content) for each in messages[first:] if each.role == "user"), b"")
    follow_up = any(each.role == "assistant" for each in messages[first:])
    prefix = sum(map(len, parts))
    return _hash(*base, *parts, b"question", question), _hash(*base, *parts) if prefix else None, prefix, follow_up


def _text(call: Call, name: str) -> bytes:
    """A field that is a string, as its JSON has it; nothing for null."""
    raw = bytes(call.body.fields.get(name, b"null"))
    return b"" if raw in (b"null", b'""') else raw


def _hash(*parts: bytes) -> int:
    """64 bits, never 0."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little") or 1


def _number(call: Call, name: str) -> int:
    try:
        return max(0, call.body.get(name, int, 0))
    except Malformed:
        return 0
