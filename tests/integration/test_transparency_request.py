"""The client's bytes reach the target as they are, and nothing reaches it that must not."""

from __future__ import annotations

import json

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import Target
from integration.client import CHAT, ask, chat, request, wire
from integration.conftest import UPSTREAM_KEY

MESSAGES = b'"messages":[{"role":"user","content":"Hi"}]'
HOP_BY_HOP = ["keep-alive", "te", "trailer", "proxy-authorization", "proxy-connection", "x-secret-hop"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"solo",' + MESSAGES + b"}",
        b' \r\n\t{ "model" :\t"solo" ,\n\n' + MESSAGES + b' , "stop" : [ ] }\n ',
        b'{"x_unknown":{"deep":[1,{"a":null}]},' + MESSAGES + b',"model":"solo","z":[],"a":{}}',
        b'{"temperature":1.0,"top_p":1e0,"seed":1e400,"big":123456789012345678901234567890,"neg":-0.0,"model":"solo",'
        + MESSAGES
        + b"}",
        '{"model":"solo","messages":[{"role":"user","content":"žluťoučký 🐎 \\u00e9 \\ud83d\\ude00 \\/"}]}'.encode(),
        b'{"m\\u006fdel2":"x","model":"solo",' + MESSAGES + b"}",
        b'{"model":"solo","nested":{"model":"other","stream":true,"stream":false},' + MESSAGES + b"}",
        b'{"model":"solo","stream":false,' + MESSAGES + b',"user":"\\u0000","logit_bias":{"50256":-100}}',
        b'{"model":"solo",' + MESSAGES + b',"stream":null,"tools":null}',
    ],
)
def test_a_body_arrives_byte_for_byte(gateway: GatewayProcess, key: str, solo: Target, body: bytes) -> None:
    assert ask(gateway, body, key).status == 200
    assert solo.calls[0].body == body


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("completions", b'"prompt":["a", "b"],"n":2,"best_of":3,"echo":true,"logprobs":5'),
        ("completions", b'"prompt":[1, 2,3],"suffix":"x"'),
        ("completions", b'"prompt":[[1,2],[ 3]],"max_tokens":1e1'),
        ("embeddings", b'"input":[[1,2],[3]],"encoding_format":"base64"'),
        (
            "chat/completions",
            b'"messages":[{"role":"developer","content":"a"},{"role":"assistant","content":null,"refusal":"No.",'
            b'"reasoning_content":"r"},{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"aGk="}}]}],'
            b'"modalities":["text","audio"],"audio":{"voice":"x"},"logprobs":true,"top_logprobs":2,"n":2,'
            b'"max_completion_tokens":5,"return_token_ids":true,"reasoning_effort":"low"',
        ),
    ],
)
def test_old_and_odd_shapes_arrive_byte_for_byte(
    gateway: GatewayProcess, key: str, solo: Target, endpoint: str, fields: bytes
) -> None:
    """What each adapter makes of them is in `tests/unit/backends/test_shapes.py`."""
    body = b'{ "model":"solo" , %b }' % fields
    assert ask(gateway, body, key, f"/v1/{endpoint}").status == 200
    assert (solo.calls[0].path, solo.calls[0].body) == (f"/v1/{endpoint}", body)


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_a_large_body_arrives_byte_for_byte(gateway: GatewayProcess, key: str, solo: Target, size: int) -> None:
    body = json.dumps(chat("solo", extra="ü" * (size // 6))).encode()
    assert ask(gateway, body, key).status == 200
    assert solo.calls[0].body == body


def test_the_name_of_an_alias_goes_on(gateway: GatewayProcess, key: str, solo: Target) -> None:
    body = b'{"model": "solo-alias" , ' + MESSAGES + b"}"
    assert ask(gateway, body, key).status == 200
    assert solo.calls[0].body == body


def test_only_the_model_is_replaced(gateway: GatewayProcess, key: str, vllm: Target) -> None:
    body = b'{ "seed" : 1e400, "a":{"model":"vllm"}, "model" :  "vllm" ,\n ' + MESSAGES + b' , "t":1.0 } '
    assert ask(gateway, body, key).status == 200
    assert vllm.calls[0].body == body.replace(b'"model" :  "vllm"', b'"model" :  "Served/Name"')


def test_an_escaped_model_is_understood_and_replaced(gateway: GatewayProcess, key: str, vllm: Target) -> None:
    body = b'{"mod\\u0065l":"vll\\u006d",' + MESSAGES + b"}"
    assert ask(gateway, body, key).status == 200
    assert vllm.calls[0].json()["model"] == "Served/Name"
    assert vllm.calls[0].body.endswith(MESSAGES + b"}")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b'"stream":true', {"include_usage": True}),
        (b'"stream":true,"stream_options":null', {"include_usage": True}),
        (b'"stream":true,"stream_options":{"include_usage":false,"x":1e400}', {"include_usage": True}),
        (b'"stream_options":{"continuous_usage_stats":true}, "stream":true', {"include_usage": True}),
    ],
)
def test_the_usage_of_a_stream_is_asked_for(
    gateway: GatewayProcess, key: str, solo: Target, sent: bytes, expected: dict[str, bool]
) -> None:
    body = b'{ "a" : 1.0, "model":"solo", ' + sent + b" , " + MESSAGES + b"}"

    assert ask(gateway, body, key).status == 200

    arrived = solo.calls[0]
    assert expected.items() <= arrived.json()["stream_options"].items()
    assert arrived.body.startswith(b'{ "a" : 1.0, "model":"solo", ')
    assert MESSAGES in arrived.body
    if b"1e400" in sent:
        assert b'"x":1e400' in arrived.body
    if b"continuous" in sent:
        assert "continuous_usage_stats" not in arrived.json()["stream_options"]  # it was void, and would not be now


def test_stream_options_that_ask_for_usage_are_left_alone(gateway: GatewayProcess, key: str, solo: Target) -> None:
    body = b'{"model":"solo","stream" : true,"stream_options":{ "include_usage" : true },' + MESSAGES + b"}"
    assert ask(gateway, body, key).status == 200
    assert solo.calls[0].body == body


def test_our_credential_goes_up_and_the_clients_does_not(gateway: GatewayProcess, key: str, vllm: Target) -> None:
    answer = ask(gateway, chat("vllm"), key, headers={"x-api-key": key, "cookie": f"k={key}"})

    assert answer.status == 200
    arrived = vllm.calls[0]
    assert [value for name, value in arrived.headers if name.lower() == "authorization"] == [f"Bearer {UPSTREAM_KEY}"]
    assert key not in repr(arrived.headers)
    assert key.encode() not in arrived.body
    assert UPSTREAM_KEY not in repr(answer.headers)


def test_a_target_without_credential_gets_none(gateway: GatewayProcess, key: str, solo: Target) -> None:
    ask(gateway, chat("solo"), key)
    assert solo.calls[0].header("authorization") is None
    assert key not in repr(solo.calls[0].headers)


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
def test_a_key_is_taken_from_any_of_three_headers(gateway: GatewayProcess, key: str, solo: Target, name: str) -> None:
    value = f"bearer {key}" if name == "authorization" else key
    assert ask(gateway, chat("solo"), headers={name: value}).status == 200
    assert key not in repr(solo.calls[0].headers)


def test_hop_by_hop_headers_stay_here(gateway: GatewayProcess, key: str, solo: Target) -> None:
    lines = b"".join(b"%s: canary\r\n" % name.encode() for name in HOP_BY_HOP)
    lines += b"connection: x-secret-hop, close\r\nexpect-nothing: 1\r\n"
    with wire(gateway, request(chat("solo"), key, more=lines)) as connection:
        assert connection.answer().status == 200

    names = {name.lower() for name, _ in solo.calls[0].headers}
    assert names & set(HOP_BY_HOP) == set()
    assert "canary" not in repr(solo.calls[0].headers)


def test_the_trace_goes_on(gateway: GatewayProcess, key: str, solo: Target) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = ask(gateway, chat("solo"), key, headers={"traceparent": trace, "x-request-id": "mine\tx"})
    assert solo.calls[0].header("traceparent") == trace
    assert solo.calls[0].header("x-request-id") == answer.header("x-request-id")


def test_the_content_type_goes_on(gateway: GatewayProcess, key: str, solo: Target) -> None:
    ask(gateway, chat("solo"), key, CHAT, headers={"content-type": "application/json; charset=UTF-8"})
    assert solo.calls[0].header("content-type") == "application/json; charset=UTF-8"
