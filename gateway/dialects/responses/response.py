"""The response object, whole or as far as it is known while it is streamed, and a chat's whole answer as one."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from backends.api import Call
from gateway.dialects import chat
from gateway.dialects.responses.namespaces import named, namespaces

INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
ECHOED: Final[dict[str, Any]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""What is told again of the call, and what it is where the call does not say."""


def response(call: Call, model: str | None, created: float | None, **known: Any) -> dict[str, Any]:
    """The response as far as it is known: `status`, `output` and what else is told beside what was asked."""
    given = {name: raw for name, raw in call.body.fields.items() if name in ECHOED and bytes(raw) != b"null"}
    return {
        "id": "resp_" + call.id,
        "object": "response",
        "created_at": created or 0,
        "model": model or call.model,
        "error": None,
        "incomplete_details": None,
        "usage": None,
        **ECHOED,
        **given,
        **known,
    }


def ended(reason: str, usage: Raw) -> dict[str, Any]:
    """What is known at the end, by the chat's reason for it."""
    why = INCOMPLETE.get(reason)
    counted = chat.counts(usage)
    return {
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "usage": None if counted is None else told(counted),
    }


def told(counted: chat.Counts) -> dict[str, Any]:
    return {
        "input_tokens": counted.prompt,
        "input_tokens_details": {"cached_tokens": counted.cached, "cache_write_tokens": 0},
        "output_tokens": counted.completion,
        "output_tokens_details": {"reasoning_tokens": counted.reasoning or 0},
        "total_tokens": counted.prompt + counted.completion,
    }


def item_id(kind: str, call: Call, index: int) -> str:
    return f"{kind}_{call.id}_{index}"


def thought_item(id: str, text: Raw | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {
        "id": id,
        "type": "reasoning",
        "summary": [],
        "content": content,
        "encrypted_content": None,
        "status": status,
    }


def message_item(id: str, content: list[Any], status: str) -> dict[str, Any]:
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: Raw, logprobs: list[Raw]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def refusal_part(text: Raw) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}


def call_item(id: str, call_id: str, name: dict[str, str], arguments: Raw, status: str) -> dict[str, Any]:
    return {
        "id": id,
        "type": "function_call",
        "call_id": call_id,
        **name,
        "arguments": arguments,
        "status": status,
    }


def logprobs_of(raw: Raw) -> list[Raw]:
    """The tokens of a choice's `logprobs`."""
    return [] if bytes(raw) in (b"", b"null") else _logprobs.decode(raw).content or []


class _Logprobs(msgspec.Struct):
    content: list[Raw] | None = None


_logprobs = msgspec.json.Decoder(_Logprobs)


def whole(call: Call, body: bytes) -> bytes:
    """A chat's whole answer as a response. Raises as `Dialect.answer`."""
    answer = chat.read(body)
    if not answer.choices or (said := answer.choices[0].message) is None:
        raise ValueError("an answer without a message")
    choice = answer.choices[0]
    reason = chat.ended(choice.finish_reason or "stop")
    output: list[dict[str, Any]] = []
    if said.thought:
        output.append(thought_item(item_id("rs", call, 0), chat.string(said.thought), "completed"))
    content: list[Any] = []
    if text := chat.inside(said.content):
        content.append(text_part(chat.string(text), logprobs_of(choice.logprobs)))
    if refusal := chat.inside(said.refusal):
        content.append(refusal_part(chat.string(refusal)))
    if content:
        output.append(message_item(item_id("msg", call, len(output)), content, "completed"))
    known = namespaces(call) if said.tool_calls else {}
    for index, made in enumerate(said.tool_calls or ()):
        function = made.function or chat.Function()
        id, call_id = item_id("fc", call, len(output)), made.id or f"call_{call.id}_{index}"
        arguments = chat.string(chat.inside(function.arguments))
        output.append(call_item(id, call_id, named(function.name or "", known), arguments, "completed"))
    if reason in INCOMPLETE and output:
        output[-1]["status"] = "incomplete"
    end = ended(reason, answer.usage)
    return msgspec.json.encode(response(call, answer.model, answer.created, output=output, **end))
