"""An answer as it is kept: what the client got, byte for byte, under a seal that tells whether it is still whole."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import blake2b, sha256
from typing import Final

import msgspec
from msgspec import Struct

from backends.api import Call, Usage

MARK: Final = b"tl-answer-1\n"
"""What each begins with; another form of them has another number."""
_SEAL: Final = 32
OVERHEAD: Final = 1024
"""Bytes around the answer itself, at most."""
_REASON: Final = re.compile(rb'"finish_reason"\s*:\s*(null|"[^"\\]*")')
_BROKEN: Final = (b'"abort"', b'"error"')
"""How servers end an answer that they have given up, without calling it a failure."""


class Kept(Struct, frozen=True, array_like=True):
    """An answer that ended well."""

    content_type: bytes
    body: bytes
    """All of it; of a stream its events."""
    made_at: float
    """Seconds since the epoch."""
    input: int = 0
    output: int = 0
    """Tokens that it took to make it, as far as its target told."""


_decoder = msgspec.msgpack.Decoder(Kept)
_encoder = msgspec.msgpack.Encoder()


def secret_of(peppers: Mapping[int, bytes]) -> bytes:
    """What names and seals are made with; from the newest pepper, so that who can only write to the cache's Redis
    cannot put words into a model's mouth."""
    newest = max(peppers, default=0)
    return sha256(b"trunkline answers\n" + (peppers[newest] if newest else b"")).digest()


def sealed(name: str, answer: Kept, secret: bytes) -> bytes:
    """The answer as it is stored under this name."""
    content = _encoder.encode(answer)
    return b"".join((MARK, _seal(name, content, secret), content))


def unsealed(name: str, value: bytes, secret: bytes) -> Kept | None:
    """The answer that was stored under this name; None for anything else, be it cut off, changed or of another name."""
    view, start = memoryview(value), len(MARK) + _SEAL
    if not value.startswith(MARK):
        return None
    content = view[start:]
    if not hmac.compare_digest(view[len(MARK) : start], _seal(name, content, secret)):
        return None
    try:
        return _decoder.decode(content)
    except msgspec.MsgspecError:
        return None


def ended_well(call: Call, body: bytes) -> bool:
    """Whether an answer that its target takes for whole has said so itself, in every choice."""
    if call.endpoint not in ("chat/completions", "completions"):
        return True
    reasons = _REASON.findall(body)
    told = [reason for reason in reasons if reason != b"null"]
    whole = call.stream or len(told) == len(reasons)
    return whole and len(told) >= call.choices and not any(reason in _BROKEN for reason in told)


def usage_of(usage: Usage | None) -> tuple[int, int]:
    """Tokens in and out that a target has told."""
    return (0, 0) if usage is None else (max(0, usage.prompt_tokens), max(0, usage.completion_tokens))


def _seal(name: str, content: bytes | memoryview, secret: bytes) -> bytes:
    seal = blake2b(name.encode() + b"\n", digest_size=_SEAL, key=secret)
    seal.update(content)
    return seal.digest()
