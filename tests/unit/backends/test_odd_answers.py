"""What only metering needs never decides over an answer: odd values in every place of every kind of answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.for_each import for_each

from backends.api import DONE, Adapter, Call, Target, Usage
from backends.body import Body
from backends.capabilities import Capabilities
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.sglang import SGLang
from backends.testing import read
from backends.tgi import TGI
from backends.vllm import VLLM

ADAPTERS: list[Adapter] = [OpenAI(), VLLM(), LlamaCpp(), SGLang(), TGI()]
TRANSPARENT = ADAPTERS[:-1]
BARE = Target("t", "http://t")


def of_each(adapters: list[Adapter] = ADAPTERS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("adapter", adapters, ids=lambda adapter: type(adapter).__name__)


def call(*, stream: bool, include_usage: bool = False, **fields: Any) -> Call:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, **fields}
    body = Body(json.dumps(asked).encode())
    return Call("c", "chat/completions", "m", body, stream=stream, include_usage=include_usage)


def sse(*events: str) -> bytes:
    return b"".join(b"data: " + event.encode() + b"\n\n" for event in events)


def text(value: str, usage: str = "", finish: str = "null", index: str = "0") -> str:
    return f'{{"id":"i","choices":[{{"index":{index},"delta":{{"content":{value}}},"finish_reason":{finish}}}]{usage}}}'


def whole(usage: str = "", value: str = '"Hi"', more: str = "") -> bytes:
    choice = f'{{"index":0,"message":{{"role":"assistant","content":{value}}},"finish_reason":"stop"}}'
    return f'{{"id":"i","choices":[{choice}]{usage}{more}}}'.encode()


# How a usage is told, and what it says to the gateway: None, when its numbers are none.
NOTHING = "null", "[]", '""', "false", "true", "0", "3", '"3"', "{}", "[3]", "NaN", '{"total_tokens":3}'
COUNTS: dict[str, Usage | None] = {
    **dict.fromkeys(NOTHING),
    '{"prompt_tokens": 14417.92, "completion_tokens": 57.0}': None,
    '{"prompt_tokens": 3.0, "completion_tokens": 57.0}': Usage(3, 57),
    '{"prompt_tokens": "3", "completion_tokens": "57"}': Usage(3, 57),
    '{"prompt_tokens": " 3 ", "completion_tokens": "57.0"}': Usage(3, 57),
    '{"prompt_tokens": 3e0, "completion_tokens": 5.7e1}': Usage(3, 57),
    '{"prompt_tokens": 3, "completion_tokens": 57, "prompt_tokens_details": []}': Usage(3, 57),
    '{"prompt_tokens": 3, "completion_tokens": 57, "prompt_tokens_details": "x"}': Usage(3, 57),
    '{"prompt_tokens": 3, "completion_tokens": 57, "prompt_tokens_details": {"cached_tokens": []}}': Usage(3, 57),
    '{"prompt_tokens": 3, "completion_tokens": 57, "completion_tokens_details": [NaN]}': Usage(3, 57),
    '{"prompt_tokens": 3, "completion_tokens": 57, "total_tokens": {}, "x": "\\ud83d"}': Usage(3, 57),
    '{"prompt_tokens": -3, "completion_tokens": 57}': None,
    '{"prompt_tokens": 3, "completion_tokens": -57}': None,
    '{"prompt_tokens": null, "completion_tokens": 57}': None,
    '{"prompt_tokens": 3, "completion_tokens": "many"}': None,
    '{"prompt_tokens": 3, "completion_tokens": {}}': None,
    '{"prompt_tokens": true, "completion_tokens": false}': None,
    '{"prompt_tokens": NaN, "completion_tokens": Infinity}': None,
    '{"prompt_tokens": 1e400, "completion_tokens": 57}': None,
    '{"prompt_tokens": "9e999", "completion_tokens": 57}': None,
    '{"prompt_tokens": ' + "9" * 400 + ', "completion_tokens": 57}': None,
    '{"prompt_tokens": "' + "9" * 400 + '", "completion_tokens": 57}': None,
    '{"prompt_tokens": ["3"], "completion_tokens": 57}': None,
}


@of_each()
@for_each("counts", COUNTS)
def test_odd_usage_of_a_whole_answer(adapter: Adapter, counts: str) -> None:
    body = whole(f',"usage":{counts}')
    reply = adapter.reply(call(stream=False), body)
    assert reply.usage == COUNTS[counts]
    if adapter in TRANSPARENT:
        assert reply.body == body
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "Hi"


@of_each()
@for_each("asked", [True, False])
@for_each("counts", COUNTS)
@for_each("place", ["last", "with the end", "every"])
def test_odd_usage_of_a_stream(adapter: Adapter, counts: str, asked: bool, place: str) -> None:
    beside = f',"usage":{counts}'
    last = [f'{{"id":"i","choices":[]{beside}}}'] if place == "last" else []
    every, end = (beside if place == "every" else ""), (beside if place != "last" else "")
    events = [text('"a"', every), text('"b"', every), text('""', end, '"stop"'), *last]
    seen = read(adapter, call(stream=True, include_usage=asked), [sse(*events) + DONE])
    assert (seen.finished, seen.done, seen.fault, seen.usage) == (1, 1, None, COUNTS[counts])
    if adapter not in TRANSPARENT:
        return
    hidden = last and not asked and counts not in ("null", "NaN")  # which is null to us
    assert seen.data == sse(*(events[:-1] if hidden else events)) + DONE


# Text that JSON by the letter does not have, and Python's and JavaScript's readers take.
HALVES = ['"\\ud83d"', '"\\ude00"', '"x\\ud83d"', '"\\ud83d\\u0041"', '"\\ude00\\ud83d"']
TEXTS = [*HALVES, '"\\\\ud83d"', '"\\ud83d\\ude00"']
NUMBERS = ["-Infinity", "Infinity", "NaN", "[-Infinity, 1]", '{"a":NaN}', "[[NaN]]", '" NaN, "', "1e999", "-0.0"]


@of_each()
@pytest.mark.parametrize("value", TEXTS)
def test_halves_of_surrogate_pairs_pass(adapter: Adapter, value: str) -> None:
    body = whole(value=value)
    reply = adapter.reply(call(stream=False), body)
    events = [text('"a"'), text(value), text(value), text('"b"'), text('""', "", '"stop"')]
    seen = read(adapter, call(stream=True), [sse(*events) + DONE])
    assert (seen.tokens, seen.finished, seen.done, seen.fault) == (5, 1, 1, None)
    if adapter in TRANSPARENT:
        assert (reply.body, seen.data) == (body, sse(*events) + DONE)
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == json.loads(value)
    shown = [json.loads(part[6:]) for part in seen.data.split(b"\n\n")[:-2]]
    assert [each["choices"][0]["delta"]["content"] for each in shown] == ["a", *[json.loads(value)] * 2, "b", ""]


@of_each()
@for_each("value", NUMBERS)
@for_each("place", ["logprobs", "usage", "top"])
def test_numbers_that_json_does_not_have_pass(adapter: Adapter, value: str, place: str) -> None:
    counts = f',"usage":{{"prompt_tokens":3,"completion_tokens":4,"x":{value}}}'
    more = {"logprobs": "", "usage": counts, "top": f',"x":{value}'}[place]
    usage = Usage(3, 4) if place == "usage" else None
    in_choice = f'"logprobs":{{"content":[{{"logprob":{value}}}]}},' if place == "logprobs" else ""
    body = whole(more).replace(b'"index":0,', b'"index":0,' + in_choice.encode())
    reply = adapter.reply(call(stream=False), body)
    plain = text('"a"', more), text('"b"', more, '"stop"')
    events = [each.replace('"index":0,', '"index":0,' + in_choice) for each in plain]
    seen = read(adapter, call(stream=True, include_usage=True), [sse(*events) + DONE])
    assert (reply.usage, seen.usage, seen.tokens, seen.done, seen.fault) == (usage, usage, 2, 1, None)
    if adapter in TRANSPARENT:
        assert (reply.body, seen.data) == (body, sse(*events) + DONE)
    if in_choice:
        shown = json.loads(reply.body)["choices"][0]["logprobs"]["content"][0]["logprob"]
        assert repr(shown) == repr(json.loads(value))


SILENT_ERRORS = ["null", '""', "{}", "[]", "false", "0", '{"message":"","code":null}', '{"message":null}']


@of_each()
@pytest.mark.parametrize("error", SILENT_ERRORS)
def test_an_error_that_says_nothing_is_none(adapter: Adapter, error: str) -> None:
    beside = f',"error":{error}'
    body = whole(beside)
    assert adapter.reply(call(stream=False), body).usage is None
    counts = f'{{"choices":[],"usage":{{"prompt_tokens":1,"completion_tokens":2}}{beside}}}'
    events = [text('"a"', beside), text('""', beside, '"stop"'), counts]
    seen = read(adapter, call(stream=True, include_usage=True), [sse(*events) + DONE])
    assert (seen.tokens, seen.done, seen.fault, seen.usage) == (2, 1, None, Usage(1, 2))


@of_each()
@pytest.mark.parametrize("error", ['{"message":"died"}', '"died"', '{"code":500}', "true", "7", '["x"]'])
def test_an_error_that_says_something_is_one(adapter: Adapter, error: str) -> None:
    """Whatever stands beside it; and so is an empty one with nothing beside it."""
    for event in (text('"a"', f',"error":{error}'), f'{{"error":{error}}}', '{"error":{}}', '{"error":""}'):
        seen = read(adapter, call(stream=True), [sse(event)])
        assert seen.fault == 500, event


@of_each()
@pytest.mark.parametrize("index", ["0.0", '"0"', "null", "[]", "-1", "NaN", "true", "{}", '"x"'])
def test_an_odd_index_is_that_of_the_first_choice(adapter: Adapter, index: str) -> None:
    events = [text('"a"', index=index), text('""', "", '"stop"', index)]
    seen = read(adapter, call(stream=True), [sse(*events) + DONE])
    assert (seen.tokens, seen.finished, seen.done, seen.fault) == (2, 1, 1, None)


@of_each()
@pytest.mark.parametrize("reason", ['"stop"', '"\\ud83d"', "true", "1", '{"type":"stop"}', '["stop"]'])
def test_any_reason_is_an_end(adapter: Adapter, reason: str) -> None:
    seen = read(adapter, call(stream=True), [sse(text('"a"'), text('""', "", reason)) + DONE])
    assert (seen.finished, seen.done, seen.fault) == (1, 1, None)


@of_each()
@pytest.mark.parametrize("reason", ["null", '""'])
def test_no_reason_is_none(adapter: Adapter, reason: str) -> None:
    seen = read(adapter, call(stream=True), [sse(text('"a"', "", reason))])
    assert (seen.tokens, seen.finished, seen.done, seen.fault) == (1, 0, 0, None)


@of_each(TRANSPARENT)
@pytest.mark.parametrize(
    "added", ['"timings":{"ms":1.50}', '"system_fingerprint":"f"', '"timings":{"ms":NaN}', '"a":"\\ud83d","b":[1.5]']
)
@pytest.mark.parametrize("choices", [1, 2])
def test_what_stands_beside_our_usage_reaches_the_client(adapter: Adapter, added: str, choices: int) -> None:
    ends = [text('""', "", '"stop"', str(index)) for index in range(choices)]
    usage = '"usage":{"prompt_tokens":1,"completion_tokens":2}'
    last = f'{{"id":"other","object":"o","created":7,"model":"other","choices":[],{usage},{added},"n":null}}'
    asked = call(stream=True, n=choices)
    seen = read(adapter, asked, [sse(text('"a"'), *ends, last) + DONE])
    shown = sse(text('"a"'), *ends[:-1], ends[-1][:-1] + "," + added + "}") + DONE
    assert (seen.data, seen.usage, seen.done) == (shown, Usage(1, 2), 1)
    wanted = call(stream=True, include_usage=True, n=choices)
    came = sse(text('"a"'), *ends, last) + DONE
    assert read(adapter, wanted, [came]).data == came


@of_each(TRANSPARENT)
def test_what_the_end_tells_itself_is_not_told_twice(adapter: Adapter) -> None:
    end = text('""', ',"timings":{"ms":1}', '"stop"')
    last = '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2},"timings":{"ms":2},"x":1}'
    seen = read(adapter, call(stream=True), [sse(text('"a"'), end, last) + DONE])
    assert seen.data == sse(text('"a"'), end[:-1] + ',"x":1}') + DONE


@of_each()
def test_a_target_is_not_asked_for_its_usage_when_the_table_says_so(adapter: Adapter) -> None:
    shy = Target("t", "http://t", usage_event=False)
    asked, bare = call(stream=True), json.loads(adapter.request(call(stream=True), BARE).body)
    assert bare["stream_options"] == {"include_usage": True}
    assert "stream_options" not in json.loads(adapter.request(asked, shy).body)
    wanted = call(stream=True, include_usage=True, stream_options={"include_usage": True})
    assert json.loads(adapter.request(wanted, shy).body)["stream_options"] == {"include_usage": True}
    if adapter in TRANSPARENT:
        assert adapter.request(asked, shy).body == asked.body.raw


MISTAKES = [
    "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    "video input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    'Failed to parse tools: Missing tool function: {"type":"function"}; tools = [\n  {\n    "type": "function"\n  }\n]',
    "Failed to parse tools: [json.exception.out_of_range.403] key 'name' not found; tools = []",
    'Failed to parse messages: Missing \'role\' in message: {"content":"hi"}',
    "Failed to parse messages: [json.exception.type_error.302] type must be string, but is number",
    "Unknown reasoning format: foo",
    "input (9001 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
]
"""As llama.cpp answers them (b11549)."""
FAILURES = [
    "Internal Server Error",
    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    "[json.exception.type_error.316] invalid UTF-8 byte at index 1: 0x20",
    "Compute error.",
    "failed to decode the batch",
    "The model said: image input is not supported",
    "",
]


@of_each(TRANSPARENT)
def test_mistakes_of_callers_that_are_answered_with_500(adapter: Adapter) -> None:
    mistaken, asked = Capabilities.of(adapter).mistaken, call(stream=False)
    assert mistaken is not None

    def said(message: str, **fields: Any) -> str | None:
        error = {"message": message, "type": "server_error", "code": 500, **fields}
        return mistaken.mistake(asked, json.dumps({"error": error}).encode())

    for message in MISTAKES:
        assert said(message) == message
    for message in FAILURES:
        assert said(message) is None
    for blame in ({"code": 400}, {"code": 422}, {"type": "invalid_request_error"}, {"type": "BadRequestError"}):
        assert said("no", **blame) == "no"
    assert said("", code=400) is said("no", code="400") is said("no", code=503) is said("no", type=None) is None


@of_each(TRANSPARENT)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"image input is not supported",
        b"[]",
        b'{"error":"image input is not supported"}',
        b'{"error":[]}',
        b'{"error":{"message":3}}',
        b'{"detail":"Failed to parse tools"}',
        b"[" * 10_000,
        b"\xff",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_other_answers_of_500_are_the_servers_failure(adapter: Adapter, body: bytes) -> None:
    mistaken = Capabilities.of(adapter).mistaken
    assert mistaken is not None and mistaken.mistake(call(stream=False), body) is None


@of_each(TRANSPARENT)
@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_told_within_a_stream_are_the_callers_too(adapter: Adapter, message: str) -> None:
    event = json.dumps({"error": {"message": message, "code": 500}})
    assert read(adapter, call(stream=True), [sse(event)]).fault == 400
