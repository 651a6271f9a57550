"""Reads what a client got of a stream, and says whether it was told the truth about how the stream ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["complete", "told in the stream", "told by the status"]
DONE = b"data: [DONE]"


class Untrue(AssertionError):
    """The client was misled."""


@dataclass
class Heard:
    """One stream as a client understands it."""

    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False


def heard(body: bytes) -> Heard:
    """What these bytes say to an SDK; raises `Untrue` if they are no whole events, or go on after their end."""
    found = Heard()
    *events, rest = body.replace(b"\r\n", b"\n").split(b"\n\n")
    if rest:
        raise Untrue(f"the body ends within an event: {rest[-80:]!r}")
    for event in events:
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if not lines:
            continue
        if found.done or found.error:
            raise Untrue(f"{event[:80]!r} follows the end")
        _understand(found, b"\n".join(lines))
    return found


def _understand(found: Heard, data: bytes) -> None:
    if data == b"[DONE]":
        found.done = True
        return
    chunk = json.loads(data)
    if "error" in chunk:
        anthropics = chunk.get("type") == "error" and "request_id" in chunk  # has neither
        found.error = ({"param": None, "code": None} if anthropics else {}) | chunk["error"]
        return
    if "choices" not in chunk:
        _understand_typed(found, chunk)
        return
    found.usage = chunk.get("usage") or found.usage
    for choice in chunk["choices"]:
        index = choice["index"]
        found.texts[index] = found.texts.get(index, "") + _said(choice)
        if choice["finish_reason"]:
            found.reasons[index] = choice["finish_reason"]


def _understand_typed(found: Heard, event: dict[str, Any]) -> None:
    """An event of Anthropic's messages or OpenAI's responses: one answer, whose events name what they are."""
    kind, delta = event["type"], event.get("delta")
    if kind == "content_block_delta":
        said = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
    else:
        said = delta if kind.startswith("response.") and kind.endswith(".delta") else ""
    if said:
        found.texts[0] = found.texts.get(0, "") + said
    if kind == "message_delta" and delta["stop_reason"]:
        found.reasons[0] = delta["stop_reason"]
    elif kind in ("response.completed", "response.incomplete"):
        found.reasons[0] = event["response"]["status"]
        found.done = True
    found.done |= kind == "message_stop"


def _said(choice: dict[str, Any]) -> str:
    """All that is output: text, reasoning, and what tools are called with."""
    if "text" in choice:
        return choice["text"] or ""
    delta = choice["delta"]
    words = [delta.get("content"), delta.get("reasoning"), delta.get("reasoning_content")]
    for call in delta.get("tool_calls") or ():
        words += [call["function"].get("name"), call["function"].get("arguments")]
    return "".join(word for word in words if word)


def judge(status: int, body: bytes, truth: Mapping[int, str]) -> Verdict:
    """How the client learned what became of its call; `truth` is what each choice would have said.

    Raises `Untrue`: a clean end of a part of the answer, no end at all, or text that was never said.
    """
    if status != 200:
        error = json.loads(body)["error"]
        if status < 500 or not error["message"]:
            raise Untrue(f"{status} {error} for what is the target's fault")
        return "told by the status"
    found = heard(body)
    for index, text in found.texts.items():
        if not truth.get(index, "").startswith(text):
            raise Untrue(f"choice {index} said {text!r}, which is not how it began")
    if found.done:
        if found.texts != truth or found.reasons.keys() != truth.keys():
            raise Untrue(f"SILENT TRUNCATION: [DONE] after {found.texts} {found.reasons}")
        return "complete"
    if found.error is None:
        raise Untrue(f"SILENT TRUNCATION: neither an error nor [DONE]: {body[-80:]!r}")
    if not {"message", "type", "param", "code"} <= set(found.error):
        raise Untrue(f"no error that an SDK reads: {found.error}")
    return "told in the stream"
