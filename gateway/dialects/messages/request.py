"""A call in Anthropic's language, as a chat.

Kept back are fields that change no answer: hints for caches, and the capacity that a call is served from.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw, Struct

from backends.api import Call, RequestRefused
from gateway.dialects import chat
from gateway.dialects.asking import Asking, given, needed, refuse, required, rest, understood
from gateway.dialects.messages.conversation import conversation

RENAMED: Final = {"stop_sequences": "stop"}
CHANGES_NOTHING: Final = ("cache_control", "service_tier")
CANNOT: Final[dict[str, tuple[Any, ...]]] = {"container": (), "mcp_servers": ([],)}
"""Fields that ask for what Anthropic's own servers do, with the values that ask for nothing."""
READ: Final = (
    "messages", "system", "metadata", "tools", "tool_choice", "thinking", "output_config", "stream", "stream_options",
)  # fmt: skip
EFFORTS: Final = ((4_096, "low"), (16_384, "medium"))
"""Tokens of thought, up to which so much effort is asked for; for more it is "high"."""


class _Metadata(Struct):
    user_id: Raw = Raw()


class _Tool(Struct):
    name: Raw = Raw()
    type: str | None = None
    description: Raw = Raw()
    input_schema: Raw = Raw()
    input_examples: list[Raw] | None = None
    strict: bool | None = None
    allowed_callers: list[str] | None = None


class _ToolChoice(Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool = False


class _Thinking(Struct):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class _Format(Struct):
    type: str
    schema: Raw = Raw()


class _OutputConfig(Struct):
    effort: str | None = None
    format: _Format | None = None


def chat_of(call: Call) -> Asking:
    """The chat that asks the same; raises `RequestRefused`."""
    required(call, ("messages", "max_tokens") if call.endpoint == "messages" else ("messages",))
    refuse(call, CANNOT, "asks for what only Anthropic's own servers do")
    fields = rest(call, READ, RENAMED, CHANGES_NOTHING, CANNOT)
    for name, chats in RENAMED.items():
        if name in call.body.fields:
            fields[chats] = call.body.fields[name]
    messages, said = conversation(call)
    fields["messages"] = messages
    metadata = given(call, "metadata", _Metadata)
    if metadata is not None and chat.inside(metadata.user_id):
        fields["user"] = metadata.user_id
    _tools(call, fields)
    _output(call, fields)
    if call.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return Asking(fields, said)


def shows_thoughts(call: Call) -> bool:
    """Whether the client is shown what the model thinks, if it does."""
    thinking = given(call, "thinking", _Thinking)
    return thinking is None or (thinking.type != "disabled" and thinking.display != "omitted")


def _tools(call: Call, fields: dict[str, Any]) -> None:
    tools = given(call, "tools", list[_Tool])
    if tools:
        fields["tools"] = [_tool(tool) for tool in tools]
    choice = given(call, "tool_choice", _ToolChoice)
    if choice is None:
        return
    named = {"type": "function", "function": {"name": choice.name}}
    kinds: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none", "tool": named}
    if choice.type not in kinds or (choice.type == "tool" and choice.name is None):
        raise RequestRefused(
            f"'tool_choice' must be one of {', '.join(kinds)}, not {choice.type!r}", param="tool_choice"
        )
    if tools:
        fields["tool_choice"] = kinds[choice.type]
        if choice.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False


def _tool(tool: _Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise RequestRefused(f"this model's server has no tool {tool.type!r}, only those of callers", param="tools")
    if tool.allowed_callers not in (None, ["direct"]):
        raise RequestRefused("tools can be called by the model alone ('allowed_callers')", param="tools")
    function: dict[str, Any] = {"name": needed(tool.name, "tools", "a tool's 'name'")}
    if tool.description:
        function["description"] = tool.description
    if tool.input_schema:
        function["parameters"] = tool.input_schema
    if tool.input_examples:
        schema = understood(tool.input_schema or b"{}", "tools", dict[str, Raw])
        function["parameters"] = {**schema, "examples": tool.input_examples}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _output(call: Call, fields: dict[str, Any]) -> None:
    """How much is thought, and in which form the answer comes."""
    thinking = given(call, "thinking", _Thinking)
    config = given(call, "output_config", _OutputConfig) or _OutputConfig()
    if thinking is not None:
        _think(call, thinking, fields)
    if config.effort is not None:
        fields["reasoning_effort"] = config.effort
    if config.format is not None:
        if config.format.type != "json_schema" or not config.format.schema:
            raise RequestRefused(
                "'output_config.format' must be a 'json_schema' with its 'schema'", param="output_config"
            )
        schema = {"name": "answer", "schema": config.format.schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}


def _think(call: Call, thinking: _Thinking, fields: dict[str, Any]) -> None:
    """Whether to think is a switch of chat templates; a bound on thoughts is put as an effort, and holds no tighter
    than `max_tokens`."""
    if thinking.type == "disabled":
        kwargs = given(call, "chat_template_kwargs", dict[str, Raw]) or {}
        fields["chat_template_kwargs"] = {"enable_thinking": False, **kwargs}
    elif thinking.type not in ("enabled", "adaptive", "between_tools"):
        raise RequestRefused(f"'thinking' has no type {thinking.type!r} here", param="thinking")
    elif thinking.budget_tokens is not None:
        budget = thinking.budget_tokens
        fields["reasoning_effort"] = next((effort for most, effort in EFFORTS if budget <= most), "high")
