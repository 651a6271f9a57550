"""Events that are not read, for all but their text is known: clients get what they would get of reading each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.translated import DONE, USAGE, Written, a_call, call_piece, capabilities, event, stream
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, Chunk
from backends.openai import OpenAI

MESSAGES: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [], "stream": True}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
ASKED: list[tuple[str, dict[str, Any], str | None]] = [
    ("messages", MESSAGES, None),
    ("responses", {"model": "m", "input": "hi", "stream": True}, None),
    ("generate", {"inputs": "hi", "stream": True}, None),
    ("chat/completions", {"model": "m", "messages": [], "tools": TOOLS, "stream": True}, "hermes"),
    ("messages", {**MESSAGES, "tools": [{"name": "f", "input_schema": {}}]}, "hermes"),
]


class Reading(OpenAI):
    """Reads each event."""

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        return super().chunk(call, event)


DELTAS: list[dict[str, Any]] = [
    {"content": "a"},
    {"content": "b"},
    {"content": '\u00e9\n"'},
    {"content": '<tool_call>{"name": "f", "arguments": {"a'},
    {"content": '": 1}}</tool_call>'},
    {"content": "<tool"},
    {"reasoning": "c"},
    {"content": "d", "reasoning": "e"},
    {"refusal": "f"},
    {"content": ""},
    {},
    {"content": None},
    {"content": "a", "text": "a"},
    call_piece(0, id="t", name="f", arguments="{"),
]


@pytest.mark.parametrize(("endpoint", "asked", "parser"), ASKED)
@given(places=st.lists(st.integers(0, len(DELTAS) - 1), max_size=30), counted=st.booleans())
def test_what_is_not_read_is_told_as_if_it_were(
    endpoint: str, asked: dict[str, Any], parser: str | None, places: list[int], counted: bool
) -> None:
    blocks = [written(endpoint, DELTAS[place], {"usage": USAGE} if counted else {}) for place in places]
    blocks += [written(endpoint, {}, {}, "stop"), event(usage=USAGE), DONE]
    known, read = (
        stream(endpoint, asked, blocks, server if parser is None else Written(parser, server))
        for server in (OpenAI(), Reading())
    )
    assert known.data == read.data and known.usage == read.usage
    assert (known.done, type(known.failure)) == (read.done, type(read.failure))


def written(endpoint: str, delta: dict[str, Any], more: dict[str, Any], finish: str | None = None) -> bytes:
    if endpoint != "generate":
        return event(delta, finish, **more)
    choice = {"index": 0, "text": delta.get("content") or "", "logprobs": None, "finish_reason": finish}
    return event(**more).replace(b'"choices": []', b'"choices": [' + json.dumps(choice).encode() + b"]")


@pytest.mark.parametrize(("endpoint", "asked", "parser"), ASKED)
def test_a_text_that_goes_on_is_not_read(
    endpoint: str, asked: dict[str, Any], parser: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = capabilities(endpoint, None if parser is None else Written(parser))
    assert able.stateful is not None
    call, read = a_call(endpoint, asked), list[bytes]()
    reader = able.stateful.open(call)
    inner: Any = reader
    while hasattr(inner, "_inner"):
        inner = inner._inner
    monkeypatch.setattr(type(inner), "chunk", counting(type(inner).chunk, read))
    for text in ("a", "b", "c", "d"):
        assert all(chunk.tokens for chunk in reader.chunk(call, written(endpoint, {"content": text}, {})))
    assert len(read) == len(set(read)) <= 2, "the first begins an answer, the second makes the mould"


def counting(chunk: Any, read: list[bytes]) -> Any:
    def counted(self: Any, call: Call, event: bytes) -> Iterator[Chunk]:
        read.append(event)
        return chunk(self, call, event)  # type: ignore[no-any-return]

    return counted
