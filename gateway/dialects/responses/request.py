"""A call in the language of OpenAI's responses, as a chat. Nothing is kept: what refers to what was kept is refused.

Kept back are fields that change no answer: what to tell beside it, and how its stream is padded.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw, Struct

from backends.api import Call, RequestRefused
from gateway.dialects.asking import Asking, given, needed, refuse, required, rest, understood
from gateway.dialects.responses.conversation import conversation
from gateway.dialects.responses.namespaces import flat

RENAMED: Final = {"max_output_tokens": "max_tokens"}
CHANGES_NOTHING: Final = ("include", "max_tool_calls", "metadata", "background_options")
"""`max_tool_calls` counts those of tools that the server has itself, and there are none."""
KEPT: Final[dict[str, tuple[Any, ...]]] = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "store": (False,),
    "prompt": (),
}
"""Fields that need answers or prompts to be kept, with the values that do not."""
CANNOT: Final[dict[str, tuple[Any, ...]]] = {
    "truncation": ("disabled",),
    "context_management": ([],),
    "moderation": (),
}
READ: Final = (
    "input", "instructions", "reasoning", "text", "tools", "tool_choice", "top_logprobs", "stream", "stream_options",
)  # fmt: skip
LOGPROBS: Final = "message.output_text.logprobs"


class _Reasoning(Struct):
    effort: str | None = None
    mode: str | None = None


class _Format(Struct):
    type: str
    name: Raw = Raw()
    schema: Raw = Raw()
    strict: bool | None = None
    description: Raw = Raw()


class _Text(Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Tool(Struct):
    type: str
    name: Raw = Raw()
    description: Raw = Raw()
    parameters: Raw = Raw()
    strict: bool | None = None
    allowed_callers: list[str] | None = None
    tools: list[_Tool] = []
    """Those of a namespace."""


class _Named(Struct):
    type: str
    name: str = ""


class _ToolChoice(Struct):
    type: str
    name: str | None = None
    mode: str = "auto"
    tools: list[_Named] = []


def chat_of(call: Call) -> Asking:
    """The chat that asks the same; raises `RequestRefused`."""
    required(call, ("input",))
    refuse(call, KEPT, "needs a server that keeps answers, and this model's does not")
    refuse(call, CANNOT, "cannot be carried to this model's server")
    fields = rest(call, READ, RENAMED, CHANGES_NOTHING, KEPT, CANNOT)
    for name, chats in RENAMED.items():
        if name in call.body.fields:
            fields[chats] = call.body.fields[name]
    fields["messages"] = conversation(call)
    _tools(call, fields)
    _text(call, fields)
    reasoning = given(call, "reasoning", _Reasoning)
    if reasoning is not None:
        if reasoning.mode not in (None, "standard"):
            raise RequestRefused(f"'reasoning.mode' cannot be {reasoning.mode!r} here", param="reasoning")
        if reasoning.effort is not None:
            fields["reasoning_effort"] = reasoning.effort
    most = given(call, "top_logprobs", int)
    if most or LOGPROBS in (given(call, "include", list[str]) or ()):
        fields |= {"logprobs": True, "top_logprobs": most or 0}
    if call.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return Asking(fields)


def _text(call: Call, fields: dict[str, Any]) -> None:
    """In which form the answer comes."""
    text = given(call, "text", _Text)
    if text is None:
        return
    if text.verbosity is not None:
        fields["verbosity"] = text.verbosity
    form = text.format
    if form is None or form.type == "text":
        return
    if form.type == "json_object":
        fields["response_format"] = {"type": "json_object"}
    elif form.type == "json_schema" and form.schema:
        schema: dict[str, Any] = {"name": form.name or "answer", "schema": form.schema}
        if form.strict is not None:
            schema["strict"] = form.strict
        if form.description:
            schema["description"] = form.description
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        raise RequestRefused(f"'text.format' cannot be a {form.type!r} without a 'schema' here", param="text")


def _tools(call: Call, fields: dict[str, Any]) -> None:
    tools = [made for tool in given(call, "tools", list[_Tool]) or () for made in _made(tool)]
    raw = call.body.fields.get("tool_choice")
    choice: Any = "auto"
    if raw is not None and bytes(raw) != b"null":
        choice = given(call, "tool_choice", str | _ToolChoice)  # type: ignore[arg-type]
    if isinstance(choice, _ToolChoice):
        if choice.type == "function" and choice.name:
            choice = {"type": "function", "function": {"name": choice.name}}
        elif choice.type == "allowed_tools":
            names = {_allowed(tool) for tool in choice.tools}
            tools = [tool for tool in tools if _name(tool) in names]
            choice = choice.mode
        else:
            raise RequestRefused(f"'tool_choice' cannot be of the type {choice.type!r} here", param="tool_choice")
    if tools:
        fields["tools"] = tools
        if raw is not None:
            fields["tool_choice"] = choice
    else:
        fields.pop("parallel_tool_calls", None)


def _made(tool: _Tool) -> list[dict[str, Any]]:
    """The functions of a tool, which are many where it is a namespace."""
    if tool.type != "namespace":
        return [_tool(tool)]
    functions, namespace = [_tool(each) for each in tool.tools], understood(tool.name, "tools", str)
    for each in functions:
        each["function"]["name"] = flat(namespace, _name(each))
    return functions


def _tool(tool: _Tool) -> dict[str, Any]:
    if tool.type != "function":
        raise RequestRefused(f"this model's server has no tool {tool.type!r}, only functions of callers", param="tools")
    if tool.allowed_callers not in (None, ["direct"]):
        raise RequestRefused("tools can be called by the model alone ('allowed_callers')", param="tools")
    function: dict[str, Any] = {"name": needed(tool.name, "tools", "a tool's 'name'")}
    if tool.description and bytes(tool.description) != b"null":
        function["description"] = tool.description
    if tool.parameters and bytes(tool.parameters) != b"null":
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _allowed(tool: _Named) -> str:
    if tool.type != "function":
        raise RequestRefused(f"'tool_choice' cannot allow a {tool.type!r} here", param="tool_choice")
    return tool.name


def _name(tool: dict[str, Any]) -> str:
    name = tool["function"]["name"]
    return name if isinstance(name, str) else understood(name, "tools", str)
