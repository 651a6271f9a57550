"""What routing reads of a call: how long its prompt is, and hashes of those parts that other calls may share."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from backends.api import Call
from backends.endpoints import SILENT
from gateway.core.types import Rank
from gateway.routing.policies.api import Prompt

SESSION: Final = b"x-session-id"
SESSION_FIELD: Final = "session_id"
SESSION_HEADERS: Final = (b"x-claude-code-session-id", b"session-id", b"thread-id", b"x-session-affinity")
"""What names a conversation: the header, else the field, else one of these, the first that is there."""
SURE: Final = 4
"""No text has fewer tokens than a fourth of the estimate, but for long rows of spaces."""
HEAD_BYTES: Final = 1024
"""Of a completion's prompt: nothing tells where its common part ends."""
END_BYTES: Final = 8 * 1024
"""Of each end of a part that is longer than both."""
USERS: Final = ("prompt_cache_key", "user")
"""Fields that name a session, the best first."""
NOTHING: Final = (b"", b"null", b'""')
"""What these fields and that of the salt may hold without naming anything."""
LOW_PART: Final = 0.7
"""Calls of low priority go to a target only below this part of its room."""

Part = bytes | memoryview


def read(
    call: Call,
    headers: Mapping[bytes, bytes],
    *,
    model: str,
    tenant: str,
    tokens: int,
    priority: Rank = "normal",
    keyed: bool = True,
    patient: bool = False,
    sessions: tuple[bytes, ...] = SESSION_HEADERS,
) -> Prompt:
    """The prompt of `call`. `model` and `tenant` keep apart what no cache shares; `tokens` is the estimated length.

    `patient`: it can be held until a target is up. Without `keyed` nothing is looked for that only a choice among
    several targets needs. `sessions` are the headers that name a conversation where nothing better does.
    """
    asked, fields = call.asked, call.body.fields
    part = LOW_PART if priority in ("low", "batch") else 1.0
    answer, alone = asked.output, tokens
    if call.endpoint in SILENT:  # of many inputs, each of which has the context to itself
        context = least = alone = 0
    elif call.endpoint == "completions":  # each of its prompts has the context to itself
        alone = int(tokens * asked.longest)
        context, least = alone + answer, alone // SURE + answer
    else:
        context, least = tokens + answer, tokens // SURE + answer
    rest = context, least, alone, not call.stream, patient, part, call.path or call.endpoint
    if not keyed:
        return Prompt(tokens, None, None, 0, False, None, *rest)
    salt = bytes(fields["cache_salt"]) if "cache_salt" in fields else b""
    base = (model.encode(), tenant.encode() if salt in NOTHING else salt)
    named = headers.get(SESSION) or b""
    if not named and SESSION_FIELD in fields and (value := bytes(fields[SESSION_FIELD])) not in NOTHING:
        named = value
    user = named = named or next(filter(None, map(headers.get, sessions)), b"")
    for name in USERS:
        if not user and name in fields and (value := bytes(fields[name])) not in NOTHING:
            user = value
    session = _hashes((*base, b"session", user))[1] if user else None
    conversation, group, prefix, follow_up = _shared(call, base)
    system = int(tokens * prefix / max(1, len(call.body.raw)))
    return Prompt(tokens, session if named else conversation, group, system, follow_up, session, *rest)


def _shared(call: Call, base: tuple[bytes, ...]) -> tuple[int | None, int | None, int, bool]:
    """Hashes of conversation and group, the bytes of the group's part, and whether an earlier call was answered."""
    if call.endpoint == "completions":
        text = memoryview(call.body.fields.get("prompt", b""))
        # Long and short prompts that begin alike are other conversations: else one template would be one home.
        size = b"%d" % (len(text) // HEAD_BYTES).bit_length()
        return _hashes((*base, text[:HEAD_BYTES], size))[1], None, 0, False
    so_far = call.conversation
    if so_far.shared is None:
        return None, None, 0, False
    prefix = sum(map(len, so_far.shared))
    group, conversation = _hashes((*base, *so_far.shared), (b"question", so_far.question))
    return conversation, group if prefix else None, prefix, so_far.follow_up


def _hashes(parts: tuple[Part, ...], more: tuple[Part, ...] = ()) -> tuple[int, int]:
    """The hash of `parts`, and that of them and `more`: 64 bits, never 0.

    Of each part its length counts, and of a long one only the ends: whatever differs between them shares the beginning.
    """
    pieces: list[Part] = []
    between = 0
    for number, part in enumerate((*parts, *more)):
        size = len(part)
        if number == len(parts):
            between = len(pieces)
        pieces.append(size.to_bytes(8, "little"))
        if size > 2 * END_BYTES:
            pieces += part[:END_BYTES], part[-END_BYTES:]
        else:
            pieces.append(part)
    if not more:
        return 1, int.from_bytes(blake2b(b"".join(pieces), digest_size=8).digest(), "little") or 1
    digest = blake2b(b"".join(pieces[:between]), digest_size=8)
    first = int.from_bytes(digest.digest(), "little")
    digest.update(b"".join(pieces[between:]))
    return first or 1, int.from_bytes(digest.digest(), "little") or 1
