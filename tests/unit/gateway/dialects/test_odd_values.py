"""Whatever is in a call or an answer: it is translated, refused or not understood, and nothing else is raised."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from harness.translated import Written, a_call, capabilities, stream
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.api import RequestRefused, Target, UpstreamFault

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
SHOWN = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"}
RICH: dict[str, dict[str, Any]] = {
    "messages": {
        "model": "m",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "a"}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "b"},
                    IMAGE,
                    {"type": "image", "source": {"type": "url", "url": "c"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "d", "signature": "e"},
                    {"type": "text", "text": "f"},
                    {"type": "tool_use", "id": "g", "name": "h", "input": {"i": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "g", "content": [{"type": "text", "text": "j"}, IMAGE]},
                    {"type": "tool_result", "tool_use_id": "k", "content": "l", "is_error": True},
                ],
            },
        ],
        "tools": [{"name": "h", "description": "m", "input_schema": {"type": "object"}, "input_examples": [{}]}],
        "tool_choice": {"type": "tool", "name": "h", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
        "metadata": {"user_id": "n"},
        "stop_sequences": ["o"],
        "stream": True,
    },
    "responses": {
        "model": "m",
        "instructions": "a",
        "input": [
            {"role": "developer", "content": "b"},
            {"role": "user", "content": [{"type": "input_text", "text": "c"}, SHOWN]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "d"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "e"}]},
            {"type": "function_call", "call_id": "f", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "f", "output": [{"type": "input_text", "text": "h"}, SHOWN]},
        ],
        "tools": [{"type": "function", "name": "g", "parameters": {}, "description": "i"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
        "text": {"format": {"type": "json_schema", "name": "j", "schema": {}}, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "stream": True,
    },
    "generate": {
        "inputs": "a",
        "parameters": {
            "details": True,
            "grammar": {"type": "json", "value": {}},
            "max_new_tokens": 5,
            "stop": ["b"],
            "temperature": 0.5,
            "frequency_penalty": 0.1,
        },
        "stream": True,
    },
    "chat/completions": {
        "model": "m",
        "messages": [],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "auto",
        "stream": True,
    },
}
WORDS = ["text", "type", "image", "content", "function", "name", "index", "tokens", "stop", "id"]
SCALARS = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.sampled_from(WORDS) | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=4,
)
SAID = {
    "content": "a <tool_call>",
    "refusal": None,
    "reasoning": "b",
    "tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
TOKENS = {"tokens": ["a"], "token_logprobs": [-1.0], "content": [{"token": "a", "logprob": -1.0, "id": 5}]}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
ANSWER: dict[str, Any] = {
    "id": "d",
    "model": "e",
    "created": 7,
    "choices": [
        {"index": 0, "text": "a", "message": SAID, "finish_reason": "stop", "logprobs": TOKENS, "token_ids": [5]}
    ],
    "usage": {**USAGE, "completion_tokens_details": {"reasoning_tokens": 1}},
}


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The ways to all that is in a value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, *path, key)


def changed(data: st.DataObject, value: Any) -> Any:
    """The value with some of it missing, or another."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(sorted(places(value), key=str)))
        holder = value
        for key in way:
            holder = holder[key]
        if data.draw(st.booleans()):
            del holder[last]
        else:
            holder[last] = data.draw(VALUES)
    return value


SERVERS = {"chat/completions": Written("hermes")}


@pytest.mark.parametrize("endpoint", RICH)
@settings(max_examples=40)
@given(data=st.data())
def test_calls(endpoint: str, data: st.DataObject) -> None:
    call, able = a_call(endpoint, changed(data, RICH[endpoint])), capabilities(endpoint, SERVERS.get(endpoint))
    with suppress(RequestRefused):
        json.loads(able.adapter.request(call, Target("t", "http://t")).body)
        assert able.stateful is not None
        able.stateful.open(call)


@pytest.mark.parametrize("endpoint", RICH)
@settings(max_examples=40)
@given(data=st.data())
def test_answers(endpoint: str, data: st.DataObject) -> None:
    answer, asked = changed(data, ANSWER), RICH[endpoint]
    able = capabilities(endpoint, SERVERS.get(endpoint))
    with suppress(UpstreamFault, ValueError):
        reply = able.adapter.reply(a_call(endpoint, {**asked, "stream": False}), json.dumps(answer).encode())
        valid(reply.body)
    text = (
        json.dumps(answer).replace('"message":', '"delta":').replace('"finish_reason": "stop"', '"finish_reason": null')
    )
    got = stream(endpoint, asked, [f"data: {text}\n\n".encode()], SERVERS.get(endpoint))
    assert got.failure is not None or got.done
    for _, value in got.events:
        valid(json.dumps(value).encode())


def valid(body: bytes) -> None:
    try:
        json.loads(body)
    except ValueError as error:
        raise AssertionError("what a client gets is no JSON") from error
