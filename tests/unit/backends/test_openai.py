"""The OpenAI adapter changes two fields on the way in, nothing on the way out, and learns what it must."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.api import DONE, Call, Endpoint, RequestRefused, Target, UpstreamFault, Usage
from backends.body import Body
from backends.openai import OpenAI

ADAPTER = OpenAI()
BARE = Target("t", "http://t")
NAMED = Target("t", "http://t", model="served/name", api_key="sk-upstream")


def call(
    asked: str | bytes, *, endpoint: Endpoint = "chat/completions", stream: bool = False, include_usage: bool = False
) -> Call:
    raw = asked.encode() if isinstance(asked, str) else asked
    return Call("c", endpoint, "public", Body(raw), "application/json; charset=utf-8", stream, include_usage)


CHAT = '{ "model" : "public", "messages": [{"role":"user","content":"\\u00e9"}] , "temperature":0.70 }'


def test_a_body_that_needs_no_change_goes_on_as_it_came() -> None:
    sent = ADAPTER.request(call(CHAT), BARE)
    assert sent.body == CHAT.encode()
    assert sent.path == "/v1/chat/completions"
    assert sent.headers == {"content-type": "application/json; charset=utf-8"}


def test_the_targets_model_and_credential_are_set() -> None:
    sent = ADAPTER.request(call(CHAT), NAMED)
    assert sent.body == CHAT.replace('"public"', '"served/name"').encode()
    assert sent.headers["authorization"] == "Bearer sk-upstream"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", '"stream_options":{"include_usage":true}'),
        (', "stream_options": null', '"stream_options": {"include_usage":true}'),
        (', "stream_options": {}', '"stream_options": {"include_usage":true}'),
        (', "stream_options": {"include_usage": false}', '"stream_options": {"include_usage":true}'),
        (
            ', "stream_options": {"x": 1.50, "include_usage":false}',
            '"stream_options": {"x":1.50,"include_usage":true}',
        ),
    ],
)
def test_a_stream_is_asked_to_tell_its_usage(given: str, sent: str) -> None:
    asked = f'{{"model": "public", "messages": [], "stream": true{given}}}'
    body = ADAPTER.request(call(asked, stream=True), BARE).body.decode()
    assert sent in body
    assert json.loads(body) == {**json.loads(asked), "stream_options": json.loads("{" + sent + "}")["stream_options"]}


def test_a_client_that_asks_for_usage_itself_is_left_alone() -> None:
    asked = '{"model": "public", "messages": [], "stream": true, "stream_options": { "include_usage" : true }}'
    assert ADAPTER.request(call(asked, stream=True, include_usage=True), BARE).body == asked.encode()


def test_stream_options_without_a_stream_are_the_servers_business() -> None:
    asked = '{"model": "public", "messages": [], "stream_options": {"include_usage": false}}'
    assert ADAPTER.request(call(asked), BARE).body == asked.encode()


@pytest.mark.parametrize(
    ("endpoint", "asked", "param"),
    [
        ("chat/completions", '{"model":"m"}', "messages"),
        ("chat/completions", '{"model":"m","messages":null}', "messages"),
        ("chat/completions", '{"model":"m","messages":"hi"}', "messages"),
        ("chat/completions", '{"model":"m","messages":{}}', "messages"),
        ("completions", '{"model":"m","messages":[]}', "prompt"),
        ("embeddings", '{"model":"m","prompt":"x"}', "input"),
    ],
)
def test_what_no_server_can_answer_is_refused_by_name(endpoint: Endpoint, asked: str, param: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        ADAPTER.request(call(asked, endpoint=endpoint), BARE)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ('{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}', Usage(3, 4)),
        ('{"prompt_tokens":3,"total_tokens":3}', Usage(3, 0)),
        ('{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":null}', Usage(3, 4)),
        ('{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}', Usage(3, 4, 2)),
        ('{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"audio_tokens":2}}', Usage(3, 4)),
        ("null", None),
        ("{}", None),
    ],
)
def test_usage_in_its_variants(usage: str, expected: Usage | None) -> None:
    body = f'{{"choices":[],"usage":{usage}}}'.encode()
    reply = ADAPTER.reply(call(CHAT), body)
    assert (reply.body, reply.usage) == (body, expected)


FAULTS: list[tuple[str, int, str]] = [
    ('{"message":"died","type":"InternalServerError","param":null,"code":500}', 500, "died"),
    ('{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}', 400, "too long"),
    ('{"message":"busy","code":503}', 503, "busy"),
    ('{"message":"no","code":"context_length_exceeded"}', 500, "no"),
    ('{"message":"no","http_status_code":422}', 422, "no"),
    ('{"message":"odd","code":200}', 500, "odd"),
    ('{"message":"odd","code":9000}', 500, "odd"),
    ('{"message":"odd","code":null,"param":null}', 500, "odd"),
    ('"Unauthorized"', 500, "Unauthorized"),
    ("{}", 500, ""),
    ("[1]", 500, ""),
    ("true", 500, ""),
]


@pytest.mark.parametrize(("error", "status", "message"), FAULTS)
def test_an_error_inside_an_answer_or_a_stream_is_a_fault(error: str, status: int, message: str) -> None:
    body = f'{{"error":{error}}}'.encode()
    with pytest.raises(UpstreamFault) as whole:
        ADAPTER.reply(call(CHAT), body)
    with pytest.raises(UpstreamFault) as streamed:
        ADAPTER.chunk(call(CHAT, stream=True), b"data: " + body + b"\n\n")
    for fault in (whole.value, streamed.value):
        assert (fault.status, fault.message) == (status, message)


def test_a_fault_names_the_field() -> None:
    with pytest.raises(UpstreamFault) as caught:
        ADAPTER.reply(call(CHAT), b'{"error":{"message":"m","param":"input_tokens","code":400}}')
    assert caught.value.param == "input_tokens"


def test_an_error_that_is_null_is_none() -> None:
    body = b'{"choices":[{"finish_reason":"stop"}],"error":null,"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    assert ADAPTER.reply(call(CHAT), body).usage == Usage(1, 2)
    (chunk,) = ADAPTER.chunk(call(CHAT, stream=True), b"data: " + body + b"\n\n")
    assert chunk.finished


def chunks(*events: str, include_usage: bool = False) -> list[Any]:
    return [
        chunk
        for event in events
        for chunk in ADAPTER.chunk(
            call(CHAT, stream=True, include_usage=include_usage), b"data: " + event.encode() + b"\n\n"
        )
    ]


def test_the_usage_event_goes_to_those_who_asked_for_it() -> None:
    event = '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    (hidden,) = chunks(event)
    (shown,) = chunks(event, include_usage=True)
    assert (hidden.data, hidden.usage) == (b"", Usage(3, 4))
    assert (shown.data, shown.usage) == (f"data: {event}\n\n".encode(), Usage(3, 4))
    assert not hidden.finished and not hidden.done and hidden.tokens == 0


def test_usage_beside_choices_is_part_of_the_event() -> None:
    event = (
        '{"choices":[{"index":0,"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    )
    (chunk,) = chunks(event)
    assert (chunk.data, chunk.usage, chunk.finished) == (f"data: {event}\n\n".encode(), Usage(3, 4), True)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "anything"])
def test_a_finish_reason_is_the_end_of_a_choice(reason: str) -> None:
    (chunk,) = chunks(f'{{"choices":[{{"index":0,"delta":{{}},"finish_reason":"{reason}"}}]}}')
    assert chunk.finished and not chunk.done


@pytest.mark.parametrize("reason", ["null", '""'])
def test_an_empty_finish_reason_is_none(reason: str) -> None:
    (chunk,) = chunks(f'{{"choices":[{{"index":0,"delta":{{"content":"x"}},"finish_reason":{reason}}}]}}')
    assert not chunk.finished and chunk.tokens == 1


@pytest.mark.parametrize(
    "delta",
    [
        '{"role":"assistant"}',
        '{"role":"assistant","content":""}',
        '{"role":"assistant","content":null,"tool_calls":[],"reasoning_content":null}',
    ],
)
def test_an_event_that_only_names_the_role_is_an_opening(delta: str) -> None:
    (chunk,) = chunks(f'{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}')
    assert chunk.opening and chunk.tokens == 0 and chunk.data


@pytest.mark.parametrize(
    "choice",
    [
        '"delta":{"role":"assistant","content":"Hi"},"finish_reason":null',
        '"delta":{"content":""},"finish_reason":null',
        '"delta":{"role":"assistant","tool_calls":[{"index":0}]},"finish_reason":null',
        '"delta":{"role":"assistant","content":""},"finish_reason":"stop"',
        '"text":"the \\"role\\" of","finish_reason":null',
    ],
)
def test_an_event_with_output_or_an_end_is_no_opening(choice: str) -> None:
    (chunk,) = chunks(f'{{"choices":[{{"index":0,{choice}}}]}}')
    assert not chunk.opening and chunk.tokens == 1


@pytest.mark.parametrize(
    ("endpoint", "fields", "choices"),
    [
        ("chat/completions", '"messages":[]', 1),
        ("chat/completions", '"n":3,"messages":[]', 3),
        ("chat/completions", '"n":null', 1),
        ("chat/completions", '"n":"three"', 1),
        ("completions", '"prompt":"Hi"', 1),
        ("completions", '"prompt":["Hi","Ho"]', 2),
        ("completions", '"prompt":["Hi","Ho"],"n":2', 4),
        ("completions", '"prompt":[1,2,3]', 1),
        ("completions", '"prompt":[[1,2],[3]]', 2),
        ("completions", '"prompt":[]', 1),
        ("completions", '"prompt":null', 1),
    ],
)
def test_how_many_answers_a_call_asks_for(endpoint: Any, fields: str, choices: int) -> None:
    assert Call("c", endpoint, "m", Body(f'{{"model":"m",{fields}}}'.encode())).choices == choices


def test_the_terminator_is_done() -> None:
    (chunk,) = ADAPTER.chunk(call(CHAT, stream=True), DONE)
    assert chunk.done and chunk.data == DONE and not chunk.finished


@pytest.mark.parametrize("event", [b": ping\n\n", b":\n\n", b"event: ping\n\n", b"id: 3\nretry: 1\n\n"])
def test_what_has_no_data_is_a_comment(event: bytes) -> None:
    (chunk,) = ADAPTER.chunk(call(CHAT, stream=True), event)
    assert chunk.comment and chunk.data == event and chunk.tokens == 0


@pytest.mark.parametrize("data", [b"nonsense", b"[1]", b'{"choices":3}', b'{"choices":[', b'"x"', b"{}x"])
def test_an_event_that_is_not_understood_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        ADAPTER.chunk(call(CHAT, stream=True), b"data: " + data + b"\n\n")


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"3", b'"x"', b"\xff", b"[" * 100_000])
def test_a_refusal_that_is_no_json_object_is_left_to_the_gateway(body: bytes) -> None:
    assert ADAPTER.refusal(call(CHAT), 400, body) is None


def test_a_refusal_in_json_goes_on_as_it_is() -> None:
    assert ADAPTER.refusal(call(CHAT), 422, b'{"detail": 1.50}') == (422, b'{"detail": 1.50}')
