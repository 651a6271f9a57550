"""Odd answers that are good ones reach the client byte for byte, and say nothing against their target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import DONE, Act, Gate, Script, Target, Upstream, answer, event, head, stream, usage_event, whole
from integration.client import ask, chat, eventually, get, record, samples, total

FINISH = event(finish="stop")
TRIES = 12
"""More than eject a target that fails."""
ODD_USAGE = [
    '{"prompt_tokens": 14417.92, "completion_tokens": 57.0}',
    '"3"',
    "[]",
    '""',
    "false",
    '{"prompt_tokens": 3, "completion_tokens": 57, "prompt_tokens_details": []}',
]


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    """Its routes have one target each, but "pair", which has two; "lenient" and "shy" know of their servers' ways."""

    def target(name: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "backend": "openai", "url": upstream.target(f"odd-{name}").url, **fields}

    routes = {
        "pair": {"targets": [target("a"), target("b")], "policy": "round-robin"},
        "llamacpp": {"targets": [target("llamacpp", backend="llamacpp")]},
        "lenient": {"targets": [target("lenient", finish="lenient")]},
        "shy": {"targets": [target("shy", usage_event=False)]},
    }
    with gateway_process(
        json.dumps({"routes": routes, "bodies": {"answer": "1MiB", "event": "8MiB", "answers": "8MiB"}})
    ) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


@pytest.fixture
def pair(upstream: Upstream) -> list[Target]:
    """Both targets of the route "pair", as new."""
    found = [upstream.target(f"odd-{name}") for name in "ab"]
    for each in found:
        each.restore()
    return found


def streamed(*events: bytes) -> tuple[Script, bytes]:
    return stream(*events), b"".join(events)


def body(counts: str) -> bytes:
    text = json.dumps(answer(), separators=(",", ":"))
    return text.replace(json.dumps(answer()["usage"], separators=(",", ":")), counts).encode()


GOOD: dict[str, tuple[bool, Script, bytes]] = {}
for odd in ODD_USAGE:
    GOOD[f"whole, usage {odd}"] = (False, whole(body(odd)), body(odd))
    last = usage_event().replace(
        json.dumps({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}).encode(), odd.encode()
    )
    GOOD[f"stream, usage {odd}"] = (True, *streamed(event("a"), FINISH, last, DONE))
HALF = body("null").replace(b"Hello", b"Hello \\ud83d")
GOOD["whole, half a pair"] = (False, whole(HALF), HALF)
GOOD["stream, half a pair"] = (True, *streamed(event("\ud83d"), event("\ude00"), FINISH, DONE))
GOOD["stream, infinity"] = (
    True,
    *streamed(event("a", logprobs=float("-inf")), event("b", logprobs=float("nan")), FINISH, DONE),
)
GOOD["stream, empty errors"] = (
    True,
    *streamed(event("a", error={}), event("b", error=""), event(finish="stop", error=[]), DONE),
)
GOOD["stream, no empty line behind its end"] = (True, stream(event("a"), FINISH, DONE[:-2]), event("a") + FINISH + DONE)
GOOD["stream, large event"] = (True, *streamed(event("x" * 3_000_000), FINISH, DONE))


@pytest.mark.parametrize("case", GOOD)
def test_a_good_answer_is_passed_on_and_says_nothing_against_its_target(
    gateway: GatewayProcess, key: str, pair: list[Target], case: str
) -> None:
    streams, script, expected = GOOD[case]
    for each in pair:
        each.script = script
    fields = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
    for _ in range(TRIES if len(expected) < 100_000 else 1):
        reply = ask(gateway, chat("pair", **fields), key)
        assert (reply.status, reply.body) == (200, expected)
    line = record(gateway, reply.header("x-request-id"))
    assert [attempt["outcome"] for attempt in line["attempts"]] == ["ok"]
    assert line["usage"]["completion_tokens"] > 0
    assert get(gateway, "/ready").json()["targets"]["a"] == "up"


def test_the_same_ends_are_none_after_a_reset(gateway: GatewayProcess, key: str, pair: list[Target]) -> None:
    for each in pair:
        each.script = stream(event("a"), FINISH, DONE[:-2], Act.RESET)
    reply = ask(gateway, chat("pair", stream=True), key)
    assert reply.status == 200 and DONE not in reply.body and b"upstream_disconnected" in reply.body


def test_an_answer_beyond_the_bound_is_asked_for_once_and_held_against_nobody(
    gateway: GatewayProcess, key: str, pair: list[Target]
) -> None:
    for each in pair:
        each.script = whole(b"x" * (2**20 + 1))
    for number in range(TRIES):
        reply = ask(gateway, chat("pair"), key)
        assert (reply.status, reply.error["code"]) == (502, "answer_too_large")
        assert "bodies.answer" in reply.error["message"] and reply.header("x-should-retry") == "false"
        assert sum(len(each.calls) for each in pair) == number + 1
    for each in pair:
        each.restore()
    assert ask(gateway, chat("pair"), key).status == 200


MISTAKES = [
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image input is not supported - hint: ..."),
    ({"tools": [{"type": "function"}]}, 'Failed to parse tools: Missing tool function: {"type":"function"}'),
    ({"messages": [{"content": "hi"}]}, 'Failed to parse messages: Missing \'role\' in message: {"content":"hi"}'),
]


@pytest.mark.parametrize(("fields", "said"), MISTAKES)
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", ["llamacpp", "pair"])
def test_a_mistake_that_is_answered_with_500_is_the_callers(
    gateway: GatewayProcess, key: str, upstream: Upstream, route: str, streams: bool, fields: dict[str, Any], said: str
) -> None:
    targets = [upstream.target(f"odd-{name}") for name in (["a", "b"] if route == "pair" else ["llamacpp"])]
    for each in targets:
        each.restore()
        each.script = whole({"error": {"code": 500, "message": said, "type": "server_error"}}, 500)
    for number in range(TRIES):
        reply = ask(gateway, chat(route, stream=streams, **fields), key)
        assert reply.status == 400 and reply.header("x-should-retry") == "false"
        assert reply.error["message"] == said and reply.error["type"] == "invalid_request_error"
        assert sum(len(each.calls) for each in targets) == number + 1, "it is not tried elsewhere"
    for each in targets:
        each.restore()
    assert ask(gateway, chat(route), key).status == 200, "no target was ejected"


def test_a_failure_that_is_answered_with_500_is_the_targets(
    gateway: GatewayProcess, key: str, pair: list[Target]
) -> None:
    for each in pair:
        each.script = whole({"error": {"code": 500, "message": "Compute error.", "type": "server_error"}}, 500)
    reply = ask(gateway, chat("pair"), key)
    assert (reply.status, reply.error["code"]) == (502, "upstream_failed")
    assert [len(each.calls) for each in pair] == [1, 1]
    for each in pair:
        each.script = [head(500, content_length=100) + b"half", Act.CUT]
    assert ask(gateway, chat("pair"), key).status == 502


def test_a_lenient_target_may_end_without_a_reason(gateway: GatewayProcess, key: str, upstream: Upstream) -> None:
    upstream.target("odd-lenient").script = stream(event("a"), event("b"), DONE)
    reply = ask(gateway, chat("lenient", stream=True), key)
    assert (reply.status, reply.body) == (200, event("a") + event("b") + DONE)
    upstream.target("odd-lenient").script = stream(event("a"), event("b"))
    assert DONE not in ask(gateway, chat("lenient", stream=True), key).body


def test_a_target_that_refuses_stream_options_is_not_sent_them(
    gateway: GatewayProcess, key: str, upstream: Upstream
) -> None:
    target = upstream.target("odd-shy")
    target.script = stream(event("a"), event("b"), FINISH, DONE)
    reply = ask(gateway, chat("shy", stream=True), key)
    assert reply.body == event("a") + event("b") + FINISH + DONE
    assert "stream_options" not in target.calls[-1].json()
    line = record(gateway, reply.header("x-request-id"))
    assert line["usage"]["source"] == "counted" and line["usage"]["completion_tokens"] >= 2


def test_what_llamacpp_adds_to_the_usage_event_reaches_the_client(
    gateway: GatewayProcess, key: str, upstream: Upstream
) -> None:
    timings = {"predicted_ms": 1.5}
    upstream.target("odd-llamacpp").script = stream(
        event("a"), FINISH, event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2}, timings=timings), DONE
    )
    *_, last, done = ask(gateway, chat("llamacpp", stream=True), key).data
    assert done == b"[DONE]" and json.loads(last)["timings"] == timings
    assert json.loads(last)["choices"][0]["finish_reason"] == "stop" and "usage" not in json.loads(last)


def test_an_answer_for_which_there_is_no_memory_is_to_be_asked_for_again(
    gateway: GatewayProcess, key: str, upstream: Upstream, pair: list[Target]
) -> None:
    gate, body = Gate(), json.dumps(answer()).encode()
    large = event("a").replace(b"data: ", b"data: " + b" " * 8_000_000)
    upstream.target("odd-shy").script = stream(large[:-20], gate, large[-20:], FINISH, DONE)
    upstream.target("odd-llamacpp").restore()
    with ThreadPoolExecutor() as pool:
        held = pool.submit(ask, gateway, chat("shy", stream=True), key)
        eventually(lambda: total(samples(gateway), "answer_memory_bytes") > 7_900_000 or None, "it is held")
        for each in pair:
            each.script = whole(body + b" " * 600_000)
        for number in range(TRIES):
            reply = ask(gateway, chat("pair"), key)
            assert (reply.status, reply.error["code"]) == (503, "answer_memory_full")
            assert (reply.header("retry-after"), reply.header("x-should-retry")) == ("1", "true")
            assert sum(len(each.calls) for each in pair) == number + 1
        assert ask(gateway, chat("llamacpp"), key).status == 200, "a small answer needs no room"
        gate.open()
        assert held.result().body == large + FINISH + DONE
    assert ask(gateway, chat("pair"), key).status == 200
