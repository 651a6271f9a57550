"""The vLLM and llama.cpp adapters on what real servers said: bytes unchanged, usage, end and faults as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.captures import GOLDEN, Capture, broken_stream, captures, read_capture

from backends.api import Chunk, Target, UpstreamFault, Usage
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.sse import Splitter, data
from backends.vllm import VLLM

TARGET = Target("t", "http://t", model="served/name")
ADAPTERS: dict[str, OpenAI] = {"vllm": VLLM(), "llamacpp": LlamaCpp()}
EXCHANGES = [
    capture
    for pattern in ("*/*chat*", "*/*completions*", "*/*embeddings*", "*/*err-*", "*/*-auth-*")
    for capture in captures(pattern)
    if capture.request
    and capture.request_line.startswith("POST /v1/")
    # the gateway has no such endpoints
    and capture.endpoint in ("chat/completions", "completions", "embeddings")
]
UNIQUE = {capture.name: capture for capture in EXCHANGES}
JSON = [capture for capture in UNIQUE.values() if "err-invalid-json" not in capture.name]
WHOLE = [c for c in JSON if c.status == 200 and not c.streamed and not c.cut]
STREAMS = [c for c in JSON if c.status == 200 and c.streamed and not c.cut]
CUT_STREAMS = [c for c in JSON if c.status == 200 and c.streamed and c.cut]
REFUSALS = [c for c in JSON if 400 <= c.status < 500]


def by_name(captures: list[Capture]) -> Any:
    return pytest.mark.parametrize("capture", captures, ids=lambda capture: capture.name)


def adapter(capture: Capture) -> OpenAI:
    return ADAPTERS[capture.name.partition("-")[0]]


def expected_usage(answer: dict[str, Any]) -> Usage | None:
    usage = answer.get("usage")
    if usage is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Usage(usage["prompt_tokens"], usage.get("completion_tokens", 0), cached)


def opens(event: dict[str, Any]) -> bool:
    """Only the role is told."""
    deltas = [choice.get("delta") for choice in event["choices"] if not choice["finish_reason"]]
    return (
        bool(deltas)
        and all(delta and "role" in delta and not delta.get("content") for delta in deltas)
        and not any(delta.get("tool_calls") for delta in deltas)
    )


def test_the_captures_are_there() -> None:
    assert len(WHOLE) > 40 and len(STREAMS) >= 10 and len(CUT_STREAMS) == 4 and len(REFUSALS) > 20


@by_name([capture for capture in JSON if capture.name != "llamacpp-err-missing-messages"])  # refused, see test_openai
def test_the_request_goes_on_with_two_fields_spliced(capture: Capture) -> None:
    call = capture.call(include_usage=False)
    before, after = capture.asked, json.loads(adapter(capture).request(call, TARGET).body)
    assert after.pop("model") == "served/name"
    before.pop("model", None)
    if call.stream:
        assert after.pop("stream_options")["include_usage"] is True
        before.pop("stream_options", None)
    assert after == before


@by_name(WHOLE)
def test_a_whole_answer(capture: Capture) -> None:
    reply = adapter(capture).reply(capture.call(), capture.body)
    assert reply.body == capture.body
    assert reply.usage == expected_usage(json.loads(capture.body))
    assert reply.usage is not None and reply.usage.prompt_tokens > 0


def read(capture: Capture, *, include_usage: bool | None = None) -> list[tuple[bytes, Chunk]]:
    call, splitter = capture.call(include_usage=include_usage), Splitter()
    pairs = [(e, chunk) for e in splitter.feed(capture.body) for chunk in adapter(capture).chunk(call, e)]
    assert not splitter.rest
    return pairs


@by_name(STREAMS)
def test_a_stream(capture: Capture) -> None:
    pairs = read(capture)
    told = [json.loads(data(event)) for event, _ in pairs if data(event) != b"[DONE]"]
    assert [chunk.done for _, chunk in pairs] == [False] * (len(pairs) - 1) + [True]
    for (_, chunk), event in zip(pairs, told, strict=False):
        assert chunk.finished == any(choice["finish_reason"] for choice in event["choices"])
        assert chunk.usage == expected_usage(event)
        assert chunk.opening == opens(event)
        assert chunk.tokens == (0 if chunk.opening else len(event["choices"]))
        assert not chunk.comment
    assert any(chunk.finished for _, chunk in pairs)
    wanted = read(capture, include_usage=True)
    assert b"".join(chunk.data for _, chunk in wanted) == capture.body


@by_name(STREAMS)
def test_the_usage_event_of_a_stream_is_hidden_unless_asked_for(capture: Capture) -> None:
    pairs = read(capture, include_usage=False)
    shown = b"".join(chunk.data for _, chunk in pairs)
    assert b'"choices":[],' not in shown
    kept = [event for event, _ in pairs if b'"choices":[],' not in event]
    assert shown == b"".join(kept)
    if any(b'"usage":{' in event for event, _ in pairs):
        assert any(chunk.usage is not None for _, chunk in pairs)


@by_name(CUT_STREAMS)
def test_an_event_broken_in_recording_is_not_understood(capture: Capture) -> None:
    broken = [event for event in Splitter().feed(capture.body) if b"characters cut" in event]
    assert len(broken) == 1
    with pytest.raises(ValueError):
        adapter(capture).chunk(capture.call(), broken[0])


@by_name(REFUSALS)
def test_a_refusal_goes_on_as_the_server_said_it(capture: Capture) -> None:
    call = capture.call()
    assert adapter(capture).refusal(call, capture.status, capture.body) == (capture.status, capture.body)


@by_name(REFUSALS)
def test_a_refusal_dressed_as_an_answer_is_a_fault(capture: Capture) -> None:
    """Some servers put the same words into a 200."""
    answer = json.loads(capture.body)
    if "error" not in answer:
        return
    with pytest.raises(UpstreamFault) as caught:
        adapter(capture).reply(capture.call(), capture.body)
    error = answer["error"]
    code = error.get("code") if isinstance(error, dict) else None
    assert caught.value.status == (code if isinstance(code, int) else 500)
    assert caught.value.message == (error["message"] if isinstance(error, dict) else error)


def test_an_engine_killed_in_mid_stream_is_a_fault_though_done_follows() -> None:
    capture = read_capture(GOLDEN / "vllm/vllm-chat-stream-usage.txt")
    call = capture.call()
    error, done = Splitter().feed(broken_stream("vllm/vllm-engine-killed-mid-stream.txt"))
    with pytest.raises(UpstreamFault) as caught:
        VLLM().chunk(call, error)
    assert caught.value.status == 500
    assert caught.value.message.startswith("EngineCore encountered an issue")
    assert VLLM().chunk(call, done)[0].done


def test_a_server_told_to_end_says_nothing_more() -> None:
    assert broken_stream("vllm/vllm-sigterm-mid-stream.txt") == b""


def test_vllm_is_left_to_refuse_by_itself() -> None:
    (capture,) = captures("vllm/vllm-err-missing-messages")
    assert json.loads(VLLM().request(capture.call(), TARGET).body)["model"] == "served/name"


def test_two_choices_finish_one_by_one() -> None:
    (capture,) = captures("vllm/vllm-chat-stream-n2")
    assert sum(chunk.finished for _, chunk in read(capture)) == 2


def test_the_embedded_model_can_be_launched() -> None:
    argv, environment = LlamaCpp().launch("embedded", "public-name", 4711)
    assert argv[1:3] == ["-m", "backends.embedded"] and not environment
    assert "4711" in argv and "public-name" in argv
