"""The tokens of a completion, as TGI tells them: each with its id, its text and its log probability."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from gateway.dialects import chat

UNKNOWN: Final = -1
"""The id of a token whose server does not tell it."""
FINISH: Final = {"length": "length"}
"""Reasons for an end, by a completion's; all others are the end of the text or a stop sequence."""


class _Listed(Struct):
    id: int = UNKNOWN
    token: Raw = Raw(b'""')
    logprob: float | None = None


class _Logprobs(Struct):
    tokens: list[Raw] | None = None
    token_logprobs: list[float | None] | None = None
    content: list[_Listed] | None = None


_logprobs = msgspec.json.Decoder(_Logprobs)


def token(id: int, text: Raw, logprob: float | None, *, special: bool = False) -> dict[str, Any]:
    return {"id": id, "text": text, "logprob": logprob, "special": special}


def tokens(choice: chat.Choice) -> list[dict[str, Any]]:
    """The tokens that a choice tells of, in either of the two shapes that servers have; none: it does not tell."""
    if bytes(choice.logprobs) in (b"", b"null"):
        return []
    told = _logprobs.decode(choice.logprobs)
    if told.content is not None:
        return [token(each.id, each.token, each.logprob) for each in told.content]
    texts, logprobs, ids = told.tokens or [], told.token_logprobs or [], choice.token_ids or []
    return [
        token(
            ids[index] if len(ids) == len(texts) else UNKNOWN,
            text,
            logprobs[index] if index < len(logprobs) else None,
        )
        for index, text in enumerate(texts)
    ]


def finish_reason(choice: chat.Choice) -> str:
    """Why it ended, in TGI's words. Raises `UpstreamFault` where the server could not go on."""
    reason = chat.ended(choice.finish_reason or "stop")
    stopped = bytes(memoryview(choice.stop_reason)[:1]) == b'"'
    return FINISH.get(reason, "stop_sequence" if stopped else "eos_token")
