"""Adapter for Hugging Face TGI: its OpenAI-like routes, whose differences are rewritten in both directions.

What TGI cannot do is refused by name: a field dropped in silence would change an answer without anyone knowing.
Facts are TGI's at version 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import Struct

from backends import answers, sse
from backends.api import (
    Adapter,
    Call,
    Chunk,
    Facts,
    Gauges,
    Reply,
    RequestRefused,
    StreamReader,
    Target,
    UpstreamFault,
    UpstreamRequest,
    Usage,
)
from backends.counters import counted
from backends.endpoints import Endpoint
from backends.exposition import Exposition
from backends.facts import understood
from backends.generate import NativeGenerate
from backends.resume import continued

# Fields with the values that ask for nothing; any other value is refused.
_CANNOT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),  # TGI would take it for a repetition penalty of value + 2
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
}
_CANNOT_AT_ALL = (
    "audio", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    "continue_final_message",
)  # fmt: skip
_FINISH = {"eos_token": "stop", "stop_sequence": "stop", "": None}
_EMPTY_SCHEMA = {"type": "object", "properties": {}}


class TGI:
    """`model` of a target names a LoRA adapter; without it the server's own model answers."""

    probe_path = "/health"
    credential_path = "/tokenize"  # all that answers to GET is open; this wants the key first and a POST then
    counters_path = gauges_path = "/metrics"
    fact_paths = ("/info",)
    inference_paths = ("/v1/chat/completions", "/generate", "/invocations")
    chat_tokens_path = "/chat_tokenize"

    def __init__(self) -> None:
        own = NativeGenerate("/generate")
        self.endpoints: Mapping[Endpoint, Adapter] = {
            "chat/completions": self,
            "completions": self,
            "generate": own,
            "generate/root": own,
        }

    def counters(self, text: str) -> tuple[int, int] | None:
        """The sums of two histograms, which are not there before the first call."""
        read, made = "tgi_request_input_length_sum", "tgi_request_generated_tokens_sum"
        found = counted(text, read, made)
        return (found.get(read, 0), found.get(made, 0)) if found or "tgi_" in text else None

    def gauges(self, text: str) -> Gauges | None:
        """TGI has no gauge of what its KV cache holds now."""
        told = Exposition(text)
        running, waiting = told.total("tgi_batch_current_size"), told.total("tgi_queue_size")
        if running is None and waiting is None:
            return None
        return Gauges(running=running, waiting=waiting, kv_tokens=told.total("tgi_batch_max_total_tokens") or None)

    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        """The prompt's bound has had two names."""
        info = understood(answers, "/info", _Info)
        if info is None:
            return Facts()
        return Facts(
            context=info.max_total_tokens,
            prompt=info.max_input_tokens or info.max_input_length,
            models=None if info.model_id is None else (info.model_id,),
            version=info.version,
            kv_tokens=info.max_batch_total_tokens,
        )

    def chat_tokens(self, body: bytes) -> int:
        with _understood():
            tokens = _object(body)["tokenize_response"]
        if not isinstance(tokens, list):
            raise ValueError("not the tokens of a chat")
        return len(tokens)

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        if call.endpoint == "embeddings":
            raise RequestRefused("this model is served by TGI, which has no embeddings", param="model")
        try:
            asked = call.body.decoded()
        except ValueError as error:
            raise RequestRefused(str(error)) from None
        asked = {name: value for name, value in asked.items() if value is not None}  # TGI refuses many a null
        _refuse(call, asked)
        asked["model"] = target.model or "tgi"
        _rewrite_sampling(asked)
        if call.endpoint == "chat/completions":
            _rewrite_chat(asked)
        if not call.stream:
            asked.pop("stream_options", None)
        elif target.usage_event:
            asked["stream_options"] = {"include_usage": True}
        headers = {"content-type": "application/json"}
        if target.api_key is not None:
            headers["authorization"] = "Bearer " + target.api_key
        return UpstreamRequest("/v1/" + call.endpoint, headers, msgspec.json.encode(asked))

    def resume(self, call: Call, said: str) -> Call:
        """A last message that is the assistant's is gone on with, from version 3."""
        return continued(call, said)

    def reply(self, call: Call, body: bytes) -> Reply:
        with _understood():
            return self._reply(call, body)

    def _reply(self, call: Call, body: bytes) -> Reply:
        answer = _object(body)
        if answers.is_error_value(answer.get("error"), beside="choices" in answer):
            raise _fault(answer)
        counted = _usage(answer)
        _complete(call, answer)
        answer.get("choices", []).sort(key=_index)
        for choice in answer.get("choices", ()):
            _finish(choice, called=bool(_tool_calls(call, choice.get("message") or {})))
        return Reply(answers.encoded(answer, body), counted)

    def open(self, call: Call) -> StreamReader:
        return _Reader()

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        return _Reader().chunk(call, event)

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """TGI's `{"error", "error_type"}` and its plain texts in OpenAI's envelope. A 424 is an `UpstreamFault`."""
        try:
            said = msgspec.json.decode(body, type=dict[str, Any])
        except (ValueError, RecursionError):
            said = {"error": body.decode(errors="replace")[:500]}
        if status == 424:
            raise UpstreamFault(500, str(said.get("error", "")))
        error = {"message": said.get("error", ""), "type": "invalid_request_error"}
        envelope = {"error": {**error, "param": None, "code": said.get("error_type")}}
        return 400 if status == 422 else status, msgspec.json.encode(envelope)


@contextmanager
def _understood() -> Iterator[None]:
    """What is JSON but not built as TGI's answers are is not understood."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not built as TGI's answers are: {type(error).__name__}") from error


class _Info(Struct):
    model_id: str | None = None
    version: str | None = None
    max_total_tokens: int | None = None
    max_input_tokens: int | None = None
    max_input_length: int | None = None
    max_batch_total_tokens: int | None = None


class _Reader:
    """One stream. TGI ends a streamed tool call without telling why, so its end must know what came before. And it
    tells roles, ids and names with every piece; OpenAI's clients, which join what the pieces say, want them once."""

    def __init__(self) -> None:
        self._told: set[tuple[int, int | None]] = set()
        """Choices whose role was told, and their tool calls whose id and name were."""
        self._unended_call: dict[str, Any] | None = None
        self._data = b""
        """What it was read from."""

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        with _understood():
            return self._chunk(call, event)

    def _chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        data = sse.data(event)
        if not data:
            return (Chunk(event, comment=True),)
        if data == b"[DONE]":
            return (*self._end_of_call(), Chunk(event, done=True))
        seen = _object(data)
        if answers.is_error_value(seen.get("error"), beside="choices" in seen):
            raise _fault(seen)
        counted = _usage(seen)
        usage = seen.pop("usage", None)
        _complete(call, seen)
        choices, finished = seen.get("choices") or [], 0
        for choice in choices:
            delta = choice.get("delta") or {}
            called = bool(_tool_calls(call, delta)) or self._unended_call is not None
            self._tell_once(_index(choice), delta)
            finished += _finish(choice, called=called)
            self._unended_call = seen if called and not finished else None
            self._data = data
        chunks = [] if choices else [*self._end_of_call()]
        pieces = [_event(seen, data)] if choices else []
        if usage is not None and call.include_usage:
            pieces.append(_event({**seen, "choices": [], "usage": usage}, data))
        highest = max(map(_index, choices), default=0)
        return (*chunks, Chunk(b"".join(pieces), len(choices), counted, finished, highest))

    def _tell_once(self, choice: int, delta: dict[str, Any]) -> None:
        """Leave out what an earlier piece has told."""
        if "role" in delta and not self._is_new(choice, None):
            del delta["role"]
        for piece in delta.get("tool_calls") or ():
            if not self._is_new(choice, _index(piece)):
                for name in ("id", "type"):
                    piece.pop(name, None)
                if isinstance(function := piece.get("function"), dict):
                    function.pop("name", None)

    def _is_new(self, choice: int, call: int | None) -> bool:
        known = (choice, call) in self._told
        self._told.add((choice, call))
        return not known

    def _end_of_call(self) -> tuple[Chunk, ...]:
        """The event that tells an OpenAI client that a tool call is complete."""
        if self._unended_call is None:
            return ()
        end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
        event, self._unended_call = _event({**self._unended_call, "choices": [end]}, self._data), None
        return (Chunk(event, finished=1),)


def _refuse(call: Call, asked: Mapping[str, Any]) -> None:
    wanted = "messages" if call.endpoint == "chat/completions" else "prompt"
    if wanted not in asked:
        raise RequestRefused(f"the field {wanted!r} is required", param=wanted)
    for name, harmless in _CANNOT.items():
        if name in asked and asked[name] not in harmless:
            raise RequestRefused(f"this model is served by TGI, which cannot honour {name!r}", param=name)
    for name in _CANNOT_AT_ALL:
        if name in asked:
            raise RequestRefused(f"this model is served by TGI, which cannot honour {name!r}", param=name)
    if call.endpoint == "completions":
        if asked.get("logprobs", False) is not False:
            raise RequestRefused(
                "this model is served by TGI, which has no 'logprobs' in completions", param="logprobs"
            )
        prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise RequestRefused("this model is served by TGI, which takes prompts as text only", param="prompt")
    if "tools" in asked and asked["tools"] and "response_format" in asked and _grammar(asked["response_format"]):
        raise RequestRefused("TGI cannot have both 'tools' and 'response_format'", param="response_format")


def _rewrite_sampling(asked: dict[str, Any]) -> None:
    for name in _CANNOT:
        asked.pop(name, None)
    if isinstance(asked.get("stop"), str):
        asked["stop"] = [asked["stop"]]
    if isinstance(top_p := asked.get("top_p"), int | float) and top_p >= 1:
        del asked["top_p"]  # 1 is "off", and TGI wants less than 1
    if (limit := asked.pop("max_completion_tokens", None)) is not None:
        asked["max_tokens"] = limit  # one field under two names: both at once are refused as a duplicate
    if "response_format" in asked:
        grammar = _grammar(asked.pop("response_format"))
        if grammar is not None:
            asked["response_format"] = grammar


def _rewrite_chat(asked: dict[str, Any]) -> None:
    asked.pop("parallel_tool_calls", None)  # a permission, and TGI makes one call at most
    messages = asked.get("messages")
    if not isinstance(messages, list):
        raise RequestRefused("'messages' must be a list", param="messages")
    asked["messages"] = [rewritten for message in messages for rewritten in _message(message)]
    for tool in asked.get("tools") or ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and function.get("parameters") is None:
            function["parameters"] = _EMPTY_SCHEMA


def _message(message: Any) -> list[Any]:
    """A message that has both text and tool calls would lose the calls, so it becomes two."""
    if not isinstance(message, dict):
        return [message]
    message = {name: value for name, value in message.items() if value is not None}
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
        return [{"content": "", **message}]
    content = message.pop("content", None)
    return [{"role": message.get("role"), "content": content}, message] if content else [message]


def _grammar(wanted: Any) -> dict[str, Any] | None:
    """OpenAI's `response_format` as TGI's grammar; None where there is nothing to enforce."""
    if not isinstance(wanted, dict):
        raise RequestRefused("'response_format' must be an object", param="response_format")
    kind = wanted.get("type")
    if kind == "text":
        return None
    if "value" in wanted:  # TGI's own form
        return wanted
    if kind == "json_object":
        return {"type": "json_object", "value": _EMPTY_SCHEMA}
    given = wanted.get("json_schema")
    if kind != "json_schema" or not isinstance(given, dict) or "schema" not in given:
        raise RequestRefused(f"TGI cannot honour a 'response_format' of type {kind!r}", param="response_format")
    return {"type": "json_schema", "value": {"name": given.get("name", "schema"), "schema": given["schema"]}}


def _complete(call: Call, answer: dict[str, Any]) -> None:
    if not answer.get("id"):
        answer["id"] = ("chatcmpl-" if call.endpoint == "chat/completions" else "cmpl-") + call.id


def _tool_calls(call: Call, message: dict[str, Any]) -> list[dict[str, Any]]:
    """The message's tool calls, their counters made into ids that stay unique in a conversation."""
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    for index, made in enumerate(calls):
        made["id"] = f"call_{call.id}_{made.get('id') or index}"
        function = made.get("function")
        if isinstance(function, dict) and function.get("description", "") is None:
            del function["description"]
    return calls


def _finish(choice: dict[str, Any], *, called: bool) -> bool:
    """Put the finish reason into OpenAI's words; returns whether there is one."""
    reason = choice.get("finish_reason")
    if isinstance(reason, str):
        reason = _FINISH.get(reason, reason)
    choice["finish_reason"] = "tool_calls" if called and reason == "stop" else reason
    return reason is not None


def _usage(answer: Mapping[str, Any]) -> Usage | None:
    given = answer.get("usage")
    if not isinstance(given, dict):
        return None
    prompt, completion = (answers.count(given.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    return None if prompt is None or completion is None else Usage(prompt, completion)


def _index(choice: Mapping[str, Any]) -> int:
    return answers.count(choice.get("index")) or 0


def _object(data: bytes) -> dict[str, Any]:
    value = answers.parsed(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _fault(answer: Mapping[str, Any]) -> UpstreamFault:
    """An error in a 200. TGI's status in it is always 422, so the message must tell what it is."""
    error = answer["error"]
    message = str(error.get("message", "") if isinstance(error, dict) else error)
    if "overloaded" in message.lower():
        return UpstreamFault(429, message)
    if "validation error" in message.lower() or answer.get("error_type") in ("validation", "tool_error"):
        return UpstreamFault(400, message)
    return UpstreamFault(500, message)


def _event(value: Mapping[str, Any], like: bytes) -> bytes:
    return b"data: " + answers.encoded(value, like) + b"\n\n"
