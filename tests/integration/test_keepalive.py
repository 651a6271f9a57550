"""Signs of life for calls that wait, and pages in browsers: what is off unless the table says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import GOOD_STREAM, Act, Gate, Target, Upstream, event, stream, whole
from integration.client import CHAT, ask, chat, get, record, request, wire

ORIGIN = {"origin": "https://chat.example.com"}
COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.fixture(scope="module")
def patient(upstream: Upstream) -> Iterator[GatewayProcess]:
    def target(name: str) -> dict[str, Any]:
        return {"name": name, "backend": "vllm", "url": upstream.target(name).url}

    routes = {
        "kept": {"targets": [target("kept-a"), target("kept-b")], "keepalive": "50ms", "policy": "round-robin"},
        "full": {"targets": [{**target("full"), "max_inflight": 1}], "keepalive": "50ms", "queue": {"wait": "400ms"}},
    }
    with gateway_process(json.dumps({"routes": routes, "cors": {"origins": [ORIGIN["origin"]]}})) as started:
        yield started


@pytest.fixture(scope="module")
def caller(patient: GatewayProcess) -> str:
    return patient.issue().secret


@pytest.fixture
def kept(upstream: Upstream) -> list[Target]:
    targets = [upstream.target("kept-a"), upstream.target("kept-b")]
    for each in targets:
        each.restore()
    return targets


MESSAGES = {"model": "kept", "stream": True, "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(("path", "sign"), [(CHAT, COMMENT), ("/v1/messages", PING)])
def test_a_call_that_waits_for_its_first_output_hears_something(
    patient: GatewayProcess, caller: str, kept: list[Target], path: str, sign: bytes
) -> None:
    gate = Gate()
    events = (
        GOOD_STREAM[1:-1]
        if path == CHAT
        else (
            b'data: {"type":"content_block_delta","delta":{"text":"x"}}\n\n',
            b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
            b'data: {"type":"message_stop"}\n\n',
        )
    )
    for each in kept:
        each.script = stream(gate, *events) if path != CHAT else [GOOD_STREAM[0], gate, *GOOD_STREAM[1:]]
    with wire(patient, request(MESSAGES, caller, path)) as connection:
        seen = connection.read_until(sign)
        assert seen.startswith(b"HTTP/1.1 200 OK") and b"content-type: text/event-stream" in seen
        gate.open()
        rest = connection.read_until(b"0\r\n\r\n")
    said = rest.partition(b"\r\n\r\n")[2]
    assert (b"[DONE]" in said) == (path == CHAT) and b'"error"' not in said
    last = said.rindex(sign)
    assert b"chat.completion.chunk" not in said[:last] and b"content_block_delta" not in said[:last]


def test_behind_a_sign_of_life_another_target_is_tried(
    patient: GatewayProcess, caller: str, kept: list[Target]
) -> None:
    gate = Gate()
    first, second = ([GOOD_STREAM[0], gate, Act.CUT], GOOD_STREAM)
    for each in kept:
        each.script = None
    scripts = iter([first, second])
    for each in kept:  # whichever is asked first fails
        each.answers = lambda received, each=each: next(scripts) if received.method == "POST" else whole({})  # type: ignore[method-assign,misc]
    try:
        with wire(patient, request(chat("kept", stream=True), caller)) as connection:
            connection.read_until(COMMENT)
            gate.open()
            seen = connection.read_until(b"0\r\n\r\n")
    finally:
        for each in kept:
            del each.answers  # type: ignore[method-assign]
    assert b"data: [DONE]" in seen and b'"error"' not in seen


def test_a_failure_behind_a_sign_of_life_is_an_event(patient: GatewayProcess, caller: str, kept: list[Target]) -> None:
    gate = Gate()
    for each in kept:
        each.script = [GOOD_STREAM[0], gate, Act.CUT]
    with wire(patient, request(chat("kept", stream=True), caller)) as connection:
        connection.read_until(COMMENT)
        gate.open()
        seen = connection.read_until(b"0\r\n\r\n")
    assert b'data: {"error":{' in seen and b"upstream_disconnected" in seen and b"DONE" not in seen


def test_before_the_first_sign_a_failure_is_a_status(patient: GatewayProcess, caller: str, kept: list[Target]) -> None:
    for each in kept:
        each.script = whole({"error": {"message": "no", "code": 400}}, 400)
    reply = ask(patient, chat("kept", stream=True), caller)
    assert (reply.status, reply.json()["error"]["message"]) == (400, "no")


def test_a_call_in_the_queue_hears_something(patient: GatewayProcess, caller: str, upstream: Upstream) -> None:
    target, gate = upstream.target("full"), Gate()
    target.restore()
    target.script = stream(event("a"), gate, *[])
    with wire(patient, request(chat("full", stream=True), caller)) as first:
        first.read_until(b'"a"')
        with wire(patient, request(chat("full", stream=True), caller)) as second:
            assert COMMENT in second.read_until(b"0\r\n\r\n")
            assert b"queue_timeout" in second.seen
        gate.open()


def test_whole_answers_hear_nothing(patient: GatewayProcess, caller: str, kept: list[Target]) -> None:
    reply = ask(patient, chat("kept"), caller)
    assert (reply.status, reply.header("transfer-encoding")) == (200, None)


def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(
    patient: GatewayProcess, caller: str, kept: list[Target]
) -> None:
    gate = Gate()
    for each in kept:
        each.script = [GOOD_STREAM[0], gate, *GOOD_STREAM[1:]]
    with wire(patient, request(chat("kept", stream=True), caller)) as connection:
        head = connection.read_until(COMMENT)
        call_id = head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    assert record(patient, call_id)["outcome"] == "gone"
    gate.open()


PREFLIGHT = {
    **ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/messages"])
def test_a_browser_may_ask_before_it_has_a_key(patient: GatewayProcess, path: str) -> None:
    reply = ask(patient, None, None, path, method="OPTIONS", headers=PREFLIGHT)
    assert (reply.status, reply.body) == (204, b"")
    assert reply.header("access-control-allow-origin") == ORIGIN["origin"]
    assert reply.header("access-control-allow-headers") == "authorization,content-type"
    assert "POST" in (reply.header("access-control-allow-methods") or "")


def test_answers_of_all_kinds_tell_the_browser(patient: GatewayProcess, caller: str, kept: list[Target]) -> None:
    good = ask(patient, chat("kept"), caller, headers=ORIGIN)
    streamed = ask(patient, chat("kept", stream=True), caller, headers=ORIGIN)
    refused = ask(patient, chat("kept"), "tl_wrong", headers=ORIGIN)
    listed = get(patient, "/v1/models", caller, headers=ORIGIN)
    assert [reply.status for reply in (good, streamed, refused, listed)] == [200, 200, 401, 200]
    for reply in (good, streamed, refused, listed):
        assert reply.header("access-control-allow-origin") == ORIGIN["origin"]
        assert (reply.header("vary"), reply.header("access-control-expose-headers")) == ("Origin", "*")


def test_pages_of_other_origins_are_told_nothing(patient: GatewayProcess, caller: str, kept: list[Target]) -> None:
    headers = {**PREFLIGHT, "origin": "https://elsewhere.example.com"}
    asked = ask(patient, None, None, method="OPTIONS", headers=headers)
    called = ask(patient, chat("kept"), caller, headers={"origin": headers["origin"]})
    assert (asked.status, asked.header("access-control-allow-origin")) == (405, None)
    assert (called.status, called.header("access-control-allow-origin")) == (200, None)


def test_without_cors_browsers_are_told_nothing(gateway: GatewayProcess) -> None:
    reply = ask(gateway, None, None, method="OPTIONS", headers=PREFLIGHT)
    assert (reply.status, reply.header("access-control-allow-origin")) == (405, None)
