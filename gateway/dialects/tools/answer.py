"""A chat's whole answer, with the calls that its text holds as tool calls."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import msgspec
from msgspec import Raw

from backends import answers
from backends.api import Call
from gateway.dialects import chat
from gateway.dialects.tools.parser import calls_in
from gateway.dialects.tools.tape import Arguments, Begun, Text

_choices = msgspec.json.Decoder(list[dict[str, Raw]])
_members = msgspec.json.Decoder(dict[str, Raw])
_NOTHING = (b"", b"null", b"[]")


def call_id(call: Call, choice: int, index: int) -> str:
    """The id of a call that its model gave none."""
    return f"call_{call.id}_{index}" if not choice else f"call_{call.id}_{choice}_{index}"


def with_calls(call: Call, body: bytes, parser: str, names: Container[str]) -> bytes:
    """The answer; byte for byte as it was, where no text of it holds a call."""
    try:
        answer = answers.members(body)
        choices = answers.decoded(_choices, answer["choices"])
        changed = [_called(call, position, choice, parser, names) for position, choice in enumerate(choices)]
    except (ValueError, RecursionError, KeyError):
        return body  # its client may understand it
    if not any(changed):
        return body
    answered = {name: Raw(raw) for name, raw in answer.items()}
    return msgspec.json.encode({**answered, "choices": choices})


def _called(call: Call, position: int, choice: dict[str, Any], parser: str, names: Container[str]) -> bool:
    """Put the calls in the choice's text beside it; whether there are any."""
    message = answers.decoded(_members, choice["message"])
    content = bytes(message.get("content", b""))
    if content[:1] != b'"' or bytes(message.get("tool_calls", b"")) not in _NOTHING:
        return False
    calls, texts = list[dict[str, Any]](), []
    for found in calls_in(parser, chat.text_of(content[1:-1]), names):
        if isinstance(found, Text):
            texts.append(found.text)
        elif isinstance(found, Begun):
            id = found.id or call_id(call, position, len(calls))
            calls.append({"id": id, "type": "function", "function": {"name": found.name, "arguments": ""}})
        elif isinstance(found, Arguments):
            calls[-1]["function"]["arguments"] += found.text
    if not calls:
        return False
    choice["message"] = {**message, "content": "".join(texts) or None, "tool_calls": calls}
    if bytes(choice.get("finish_reason", b"")) == b'"stop"':
        choice["finish_reason"] = "tool_calls"
    return True
