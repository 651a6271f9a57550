"""The target's bytes reach the client as they are, except for the usage event that only the gateway asked for."""

from __future__ import annotations

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import DONE, Act, Gate, Slowly, Target, Upstream, chunk, event, head, stream, usage_event, whole
from integration.client import ask, chat, request, wire

ODD_ANSWER = (
    b'\n{ "id":"x", "choices" : [ {"message":{"content":"\\u00e9 \xf0\x9f\x90\x8e","reasoning_content":"r"},'
    b'"finish_reason":"stop","logprobs":{"content":[]},"x":1e400} ] ,"new_field":{"a":[1.0]} , '
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"extra":{"b":1}}, "choices2":null }\r\n'
)
MIXED = [
    b": a comment\n\n",
    b'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"x_new":1e400}\n\n',
    b'event: message\nid: 7\ndata:{"choices":[{"index":0,"delta":{"reasoning_content":"hm\\u00e9"}}]}\nretry: 5\n\n',
    b": ping - 2026-01-01\n\n",
    b'data: {"choices":[{"index":0,"delta":{"content":"\xf0\x9f\x90\x8e"},"logprobs":{"content":[]}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":128001}]}\n\n',
]


@pytest.mark.parametrize("body", [ODD_ANSWER, b'{"choices":[],"usage":null}', b'{"object":"chat.completion"}'])
def test_a_whole_answer_comes_byte_for_byte(gateway: GatewayProcess, key: str, solo: Target, body: bytes) -> None:
    solo.script = whole(body, content_type="application/json; charset=utf-8")
    answer = ask(gateway, chat("solo"), key)
    assert (answer.status, answer.body) == (200, body)
    assert answer.header("content-type") == "application/json; charset=utf-8"
    assert answer.header("content-length") == str(len(body))


@pytest.mark.parametrize("size", [1_000_000, 20_000_000])
def test_a_large_answer_comes_whole(gateway: GatewayProcess, key: str, solo: Target, size: int) -> None:
    body = b'{"data":"' + b"e" * size + b'"}'
    solo.script = whole(body)
    assert ask(gateway, {"model": "solo", "input": "x"}, key, "/v1/embeddings").body == body


def test_a_trickled_answer_comes_whole(gateway: GatewayProcess, key: str, solo: Target) -> None:
    solo.script = [Slowly(bytes(whole(ODD_ANSWER)[0]), 7)]  # type: ignore[arg-type] # one step of bytes
    assert ask(gateway, chat("solo"), key).body == ODD_ANSWER


def test_an_answer_without_length_comes_whole(gateway: GatewayProcess, key: str, solo: Target) -> None:
    solo.script = [head(content_type="application/json", connection="close"), ODD_ANSWER, Act.CUT]
    assert ask(gateway, chat("solo"), key).body == ODD_ANSWER


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("size", [0, 1, 13])
def test_a_stream_comes_byte_for_byte(gateway: GatewayProcess, key: str, solo: Target, end: bytes, size: int) -> None:
    said = b"".join([*MIXED[1:], DONE]).replace(b"\n", end)
    pieces = [said[i : i + size] for i in range(0, len(said), size)] if size else [said]
    solo.script = stream(Slowly(b"".join(map(chunk, pieces)), 11 if size else len(said)))

    answer = ask(gateway, chat("solo", stream=True), key)

    assert answer.status == 200
    assert answer.body == said
    assert (answer.header("content-type") or "").startswith("text/event-stream")


def test_comments_before_the_first_event_are_held_back_and_not_lost(
    gateway: GatewayProcess, key: str, solo: Target
) -> None:
    gate = Gate()
    solo.script = stream(b": one\n\n", gate, b": two\n\n", event("Hi"), event(finish="stop"), DONE)
    with wire(gateway, request(chat("solo", stream=True), key)) as connection:
        solo.wait_for_calls()
        gate.open()
        assert connection.answer().body.startswith(b": one\n\n: two\n\n" + event("Hi"))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}])
def test_a_usage_event_nobody_asked_for_is_taken_out(
    gateway: GatewayProcess, key: str, solo: Target, options: dict[str, object], end: bytes
) -> None:
    before = [part.replace(b"\n", end) for part in MIXED]
    solo.script = stream(*before, usage_event().replace(b"\n", end), DONE.replace(b"\n", end))
    answer = ask(gateway, chat("solo", stream=True, **options), key)
    assert answer.body == b"".join([*before, DONE.replace(b"\n", end)])


def test_a_usage_event_that_was_asked_for_stays(gateway: GatewayProcess, key: str, solo: Target) -> None:
    solo.script = stream(*MIXED, usage_event(), DONE)
    answer = ask(gateway, chat("solo", stream=True, stream_options={"include_usage": True}), key)
    assert answer.body == b"".join([*MIXED, usage_event(), DONE])


def test_usage_beside_choices_stays(gateway: GatewayProcess, key: str, solo: Target) -> None:
    last = event(finish="stop", usage={"prompt_tokens": 1, "completion_tokens": 1})
    solo.script = stream(event("Hi"), last, DONE)
    assert ask(gateway, chat("solo", stream=True), key).body == event("Hi") + last + DONE


def test_each_event_comes_as_soon_as_it_is_sent(gateway: GatewayProcess, key: str, solo: Target) -> None:
    gates = [Gate(), Gate()]
    solo.script = stream(event("one"), gates[0], event("two"), gates[1], event(finish="stop"), DONE)

    with wire(gateway, request(chat("solo", stream=True), key)) as connection:
        assert b"two" not in connection.read_until(event("one"))
        gates[0].open()
        assert b"[DONE]" not in connection.read_until(event("two"))
        gates[1].open()
        connection.read_until(DONE)


def test_a_stream_that_ends_well_but_without_done_gets_one(gateway: GatewayProcess, key: str, solo: Target) -> None:
    solo.script = stream(event("Hi"), event(finish="stop"))
    assert ask(gateway, chat("solo", stream=True), key).body == event("Hi") + event(finish="stop") + DONE


def test_what_follows_done_is_not_passed_on(gateway: GatewayProcess, key: str, solo: Target) -> None:
    solo.script = stream(event("Hi"), event(finish="stop"), DONE, event("too late"))
    assert ask(gateway, chat("solo", stream=True), key).data[-1] == b"[DONE]"


def test_headers_of_the_target_stay_inside(gateway: GatewayProcess, key: str, solo: Target) -> None:
    solo.script = whole(
        b"{}", set_cookie="a=canary", server="canary", x_api_key="canary", keep_alive="timeout=canary", via="canary"
    )
    answer = ask(gateway, chat("solo"), key)
    assert answer.status == 200
    assert "canary" not in repr(answer.headers)


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
def test_connections_to_a_target_are_used_again(
    gateway: GatewayProcess, key: str, upstream: Upstream, solo: Target, fields: dict[str, bool]
) -> None:
    for _ in range(30):
        assert ask(gateway, chat("solo", **fields), key).status == 200
    assert len({call.peer for call in solo.calls}) < 10
    assert len(solo.calls) == 30
