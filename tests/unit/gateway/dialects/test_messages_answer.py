"""A chat's whole answer as Anthropic's message."""

from __future__ import annotations

from typing import Any

import pytest
from harness.captures import GOLDEN, read_capture
from harness.translated import LIMITS, TARGET, a_call, answer, capabilities, chat

from backends.api import UpstreamFault
from gateway.core.errors import Rejected, UpstreamFailed
from gateway.upstream.failures import worded_refusal
from gateway.upstream.reading import AnswerMemory, reader_for

ASKED: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def told(message: dict[str, Any], finish: str = "stop", **more: Any) -> Any:
    return answer("messages", ASKED, chat(message, finish, **more))


def test_a_text() -> None:
    """Half of a surrogate pair becomes a blank."""
    assert told({"content": "Hello \u00e9\ud83d"}) == {
        "id": "msg_call-1",
        "type": "message",
        "role": "assistant",
        "model": "served/name",
        "content": [{"type": "text", "text": "Hello \u00e9 "}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 10,
            "output_tokens": 8,
        },
    }


def test_thoughts_calls_and_what_they_cost() -> None:
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "f", "arguments": ' {"a": 1.0} '}},
        {"function": {"name": "g", "arguments": ""}},
        {"id": "t3", "function": {"name": "h", "arguments": '{"a": '}},
        {"id": "t4", "function": {"name": "h", "arguments": '"Paris"'}},
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}}
    said = told({"content": "", "reasoning": "Hm.", "tool_calls": calls}, "tool_calls", usage=usage)
    assert said["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "msg_call-1"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1.0}},
        {"type": "tool_use", "id": "call_call-1_1", "name": "g", "input": {}},
        {"type": "tool_use", "id": "t3", "name": "h", "input": {"INVALID_JSON": '{"a":'}},
        {"type": "tool_use", "id": "t4", "name": "h", "input": {"INVALID_JSON": '"Paris"'}},
    ]
    assert said["stop_reason"] == "tool_use"
    assert said["usage"]["output_tokens_details"] == {"thinking_tokens": 4}


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "adaptive", "display": "omitted"}])
def test_thoughts_that_nobody_wants_to_see(thinking: dict[str, str]) -> None:
    said = answer("messages", {**ASKED, "thinking": thinking}, chat({"content": "x", "reasoning_content": "Hm."}))
    assert said["content"] == [{"type": "text", "text": "x"}]


@pytest.mark.parametrize(
    ("finish", "more", "reason", "sequence"),
    [
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ("stop", {"stop_reason": 2}, "end_turn", None),
        ("length", {}, "max_tokens", None),
        ("content_filter", {}, "refusal", None),
        ("repetition", {}, "end_turn", None),
    ],
)
def test_why_it_ended(finish: str, more: dict[str, Any], reason: str, sequence: str | None) -> None:
    said = told({"content": "x"}, finish, **more)
    assert (said["stop_reason"], said["stop_sequence"]) == (reason, sequence)


def test_a_refusal() -> None:
    said = told({"content": None, "refusal": "No."})
    assert said["content"] == [{"type": "text", "text": "No."}] and said["stop_reason"] == "refusal"


def test_a_call_of_a_tool_that_was_named_ends_with_stop() -> None:
    calls = [{"id": "t", "function": {"name": "f", "arguments": "{}"}}]
    assert told({"content": "", "tool_calls": calls}, "stop")["stop_reason"] == "tool_use"


def test_what_a_real_server_said() -> None:
    recorded = read_capture(GOLDEN / "llamacpp" / "llamacpp-chat.txt")
    said = answer("messages", ASKED, recorded.body)
    usage = said.pop("usage")
    assert said["model"] == "smollm2-135m" and said["content"][0]["type"] == "text"
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] > 0 < usage["output_tokens"]


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"choices":[]}', b'{"choices":[{"message":"x"}]}'])
def test_what_is_no_answer_is_not_understood(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        answer("messages", ASKED, body)


def test_an_answer_that_was_broken_off_is_none() -> None:
    with pytest.raises(UpstreamFault):
        told({"content": "x"}, "abort")
    reader = reader_for(
        a_call("messages", ASKED), capabilities("messages"), "application/json", LIMITS, AnswerMemory(10**9)
    )
    reader.feed(b'{"error":{"message":"EngineCore","code":500}}')
    assert reader.end(None) is None and isinstance(reader.failure, UpstreamFailed)


def test_a_refusal_is_told_in_the_envelope_of_the_dialect() -> None:
    said = b'{"error":{"message":"max_tokens is too large","type":"BadRequestError","param":"max_tokens","code":400}}'
    call, able = a_call("messages", ASKED), capabilities("messages")
    refused = worded_refusal(call, TARGET, able, 400, said)
    assert isinstance(refused, Rejected) and refused.status == 400
    assert refused.body == (
        b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens is too large"},'
        b'"request_id":"call-1"}'
    )
