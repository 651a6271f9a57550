"""A chat's whole answer in Anthropic's language, and what its parts are called there."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from backends.api import Call
from gateway.dialects import chat

STOP_REASONS: Final = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def message_id(call: Call) -> str:
    return "msg_" + call.id


def message(call: Call, body: bytes, *, thoughts: bool) -> bytes:
    """The answer's message; `thoughts`: with what the model thought. Raises as `Dialect.answer`."""
    answer = chat.read(body)
    if not answer.choices or (said := answer.choices[0].message) is None:
        raise ValueError("an answer without a message")
    blocks: list[dict[str, Any]] = []
    if thoughts and said.thought:
        blocks.append({"type": "thinking", "thinking": chat.string(said.thought), "signature": message_id(call)})
    if text := chat.inside(said.content) + chat.inside(said.refusal):
        blocks.append({"type": "text", "text": chat.string(text)})
    for index, made in enumerate(said.tool_calls or ()):
        blocks.append(_tool_use(call, index, made))
    choice = answer.choices[0]
    reason, sequence = stop(choice.finish_reason or "stop", choice.stop_reason, called=bool(said.tool_calls))
    if chat.inside(said.refusal):
        reason = "refusal"
    return msgspec.json.encode(
        {
            "id": message_id(call),
            "type": "message",
            "role": "assistant",
            "model": answer.model or call.model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage(answer.usage),
        }
    )


def stop(reason: str, sequence: Raw, *, called: bool) -> tuple[str, Raw | None]:
    """Why an answer ended, and at which stop sequence. `called`: it has tool calls. Raises `UpstreamFault`."""
    reason = chat.ended(reason)
    if reason in STOP_REASONS:
        return STOP_REASONS[reason], None
    if called:
        return "tool_use", None
    return ("stop_sequence", sequence) if bytes(memoryview(sequence)[:1]) == b'"' else ("end_turn", None)


def usage(raw: Raw) -> dict[str, Any]:
    """The counts; those of the prompt leave out what came out of a cache."""
    counted = chat.counts(raw) or chat.Counts()
    told: dict[str, Any] = {
        "input_tokens": counted.prompt - counted.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counted.cached,
        "output_tokens": counted.completion,
    }
    if counted.reasoning is not None:
        told["output_tokens_details"] = {"thinking_tokens": counted.reasoning}
    return told


def tool_use_id(call: Call, index: int, made: chat.ToolCall) -> str:
    return made.id or f"call_{call.id}_{index}"


def no_object(arguments: str) -> dict[str, str]:
    """Arguments that are no JSON object, half of one, say; clients know them by this name."""
    return {"INVALID_JSON": arguments}


def _tool_use(call: Call, index: int, made: chat.ToolCall) -> dict[str, Any]:
    function = made.function or chat.Function()
    arguments = chat.text_of(chat.inside(function.arguments)).strip() or "{}"
    try:
        msgspec.json.decode(arguments, type=dict[str, Raw])
        given: Any = Raw(arguments.encode())
    except (ValueError, RecursionError):
        given = no_object(arguments)
    return {"type": "tool_use", "id": tool_use_id(call, index, made), "name": function.name or "", "input": given}
