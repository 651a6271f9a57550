"""The shapes of the bodies TGI takes, with its defaults, aliases and enumerations."""

from dataclasses import dataclass, field
from typing import Any

from standin.tgi_json import (
    Field,
    Mismatch,
    anything,
    boolean,
    flag,
    i32,
    list_of,
    number,
    optional,
    string,
    struct,
    u32,
    u64,
    untagged,
    usize,
    wrong,
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the answer must match: a JSON schema, or a regular expression."""

    kind: str
    value: Any


def grammar(value: Any) -> Grammar:
    kinds = {"json": anything, "json_object": anything, "regex": string, "json_schema": anything}
    if not isinstance(value, dict):
        raise wrong(value, "adjacently tagged enum GrammarType")
    if "type" not in value:
        raise Mismatch("missing field `type`")
    if value["type"] not in kinds:
        raise Mismatch(
            f"unknown variant `{value['type']}`, expected one of `json`, `json_object`, `regex`, `json_schema`"
        )
    if "value" not in value:
        raise Mismatch("missing field `value`")
    content = value["value"]
    if value["type"] == "regex":
        return Grammar("regex", string(content))
    if value["type"] == "json_schema":
        named = struct("JsonSchemaConfig", {"name": optional(string), "schema": Field(anything)})
        return Grammar("json", named(content)["schema"])
    return Grammar("json", content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] = field(default_factory=list)
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: Grammar | None = None
    adapter_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    inputs: str
    # Only a body without any `parameters` samples by default; an empty object is greedy.
    parameters: Parameters = field(default_factory=lambda: Parameters(do_sample=True))
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: str
    content: str | None
    tool_calls: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    messages: list[Message]
    model: str | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logprobs: bool | None
    top_logprobs: int | None
    max_tokens: int | None
    stop: list[str] | None
    stream: bool
    seed: int | None
    temperature: float | None
    top_p: float | None
    tools: list[dict[str, Any]] | None
    tool_prompt: str | None
    tool_choice: Any
    response_format: Grammar | None
    stream_options: dict[str, bool]
    logit_bias: list[float] | None
    n: int | None
    guideline: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    prompt: list[str]
    model: str | None
    max_tokens: int | None
    suffix: str | None
    stream: bool
    seed: int | None
    stop: list[str] | None
    temperature: float | None
    top_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None


parameters = struct(
    "GenerateParameters",
    {
        "best_of": optional(usize),
        "temperature": optional(number),
        "repetition_penalty": optional(number),
        "frequency_penalty": optional(number),
        "top_k": optional(i32),
        "top_p": optional(number),
        "typical_p": optional(number),
        "do_sample": flag(),
        "max_new_tokens": optional(u32),
        "return_full_text": optional(boolean),
        "stop": Field(list_of(string), default=list),
        "truncate": optional(usize),
        "watermark": flag(),
        "details": flag(),
        "decoder_input_details": flag(),
        "seed": optional(u64),
        "top_n_tokens": optional(u32),
        "grammar": optional(grammar),
        "adapter_id": optional(string),
    },
    Parameters,
)


generate_fields = {
    "inputs": Field(string),
    "parameters": Field(parameters, default=lambda: Parameters(do_sample=True)),
}


generate = struct("GenerateRequest", generate_fields, Generate)
compat_generate = struct("CompatGenerateRequest", {**generate_fields, "stream": flag()}, Generate)
function = struct(
    "FunctionDefinition",
    {"description": optional(string), "name": Field(string), "arguments": Field(anything, aliases=("parameters",))},
)


tool = struct("Tool", {"type": Field(string), "function": Field(function)})
tool_call = struct("ToolCall", {"id": Field(string), "type": Field(string), "function": Field(function)})
url = struct("Url", {"url": Field(string)})


def chunk(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return str(struct("MessageChunk", {"text": Field(string)})(value)["text"])
    if kind == "image_url":
        return f"![]({struct('MessageChunk', {'image_url': Field(url)})(value)['image_url']['url']})"
    raise Mismatch(f"unknown variant `{kind}`, expected `text` or `image_url`")


def message(value: Any) -> Message:
    """Content is tried before tool calls, so a message with both keeps only its content."""
    role = struct("Message", {"role": Field(string)})(value)["role"]
    content = untagged("MessageContent", string, lambda parts: "".join(list_of(chunk)(parts)))
    try:
        return Message(role=role, content=struct("Body", {"content": Field(content)})(value)["content"], tool_calls=[])
    except Mismatch:
        pass
    try:
        calls = struct("Body", {"tool_calls": Field(list_of(tool_call))})(value)["tool_calls"]
    except Mismatch:
        raise Mismatch("data did not match any variant of untagged enum MessageBody") from None
    return Message(role=role, content=None, tool_calls=calls)


def tool_choice(value: Any) -> Any:
    named = struct("FunctionName", {"name": Field(string)})
    wrapped = struct("ToolType", {"function": Field(named)})
    return untagged("ToolType", string, wrapped)(value)


chat = struct(
    "ChatRequest",
    {
        "messages": Field(list_of(message)),
        "model": optional(string),
        "frequency_penalty": optional(number),
        "presence_penalty": optional(number),
        "logprobs": optional(boolean),
        "top_logprobs": optional(u32),
        "max_tokens": Field(optional(u32).check, default=lambda: None, aliases=("max_completion_tokens",)),
        "stop": optional(list_of(string)),
        "stream": flag(),
        "seed": optional(u64),
        "temperature": optional(number),
        "top_p": optional(number),
        "tools": optional(list_of(tool)),
        "tool_prompt": optional(string),
        "tool_choice": optional(tool_choice),
        "response_format": optional(grammar),
        "stream_options": Field(
            struct("StreamOptions", {"include_usage": Field(boolean)}), default=lambda: {"include_usage": False}
        ),
        "logit_bias": optional(list_of(number)),
        "n": optional(u32),
        "guideline": optional(string),
    },
    Chat,
)


def prompt(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list_of(string)(value)


completion = struct(
    "CompletionRequest",
    {
        "prompt": Field(prompt),
        "model": optional(string),
        "max_tokens": optional(u32),
        "suffix": optional(string),
        "stream": flag(),
        "seed": optional(u64),
        "stop": optional(list_of(string)),
        "temperature": optional(number),
        "top_p": optional(number),
        "repetition_penalty": optional(number),
        "frequency_penalty": optional(number),
    },
    Completion,
)


invocation = untagged("SagemakerRequest", compat_generate, chat, completion)
vertex = struct("VertexRequest", {"instances": Field(list_of(untagged("VertexInstance", generate, chat)))})
