"""Clients that leave while a target works for them: in every phase, dialect, endpoint and way of leaving."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Act, Script, Target, Upstream, event, head, stream
from integration.client import Wire, ask, chat, eventually, record, request, wire
from integration.leaving import LIMIT, TRIES, WAYS, Counted, held, in_time, leave, nothing_left, passed_through

from gateway.metering.aborts import Phase

DIALECTS = ("openai", "vllm", "tgi")
ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
CHAT = event("Hi")
TEXT = b"data: " + json.dumps({"choices": [{"index": 0, "text": "Hi", "finish_reason": None}]}).encode() + b"\n\n"
SOME = head(content_type="application/json", content_length=9) + b"{"


class Case(NamedTuple):
    """How far a target gets before the client leaves, and what the client sees of that."""

    endpoint: str
    phase: Phase
    script: Script
    sees: bytes = b""
    wasted: int = 0


CASES = {
    "chat, no headers": Case("chat/completions", "headers", [Act.STALL]),
    "chat, headers": Case("chat/completions", "first_token", stream(Act.STALL)),
    "chat, a comment": Case("chat/completions", "first_token", stream(b": wait\n\n", Act.STALL)),
    "chat, a role": Case("chat/completions", "first_token", stream(ROLE, Act.STALL)),
    "chat, a token": Case("chat/completions", "stream", stream(CHAT, Act.STALL), b'"Hi"', 1),
    "chat, three tokens": Case("chat/completions", "stream", stream(CHAT, CHAT * 2, Act.STALL), b'"Hi"', 3),
    "chat, no stream": Case("chat/completions", "whole", [Act.STALL]),
    "chat, no stream, some": Case("chat/completions", "whole", [SOME, Act.STALL]),
    "completion, no headers": Case("completions", "headers", [Act.STALL]),
    "completion, headers": Case("completions", "first_token", stream(Act.STALL)),
    "completion, a token": Case("completions", "stream", stream(TEXT, Act.STALL), b'"Hi"', 1),
    "completion, no stream": Case("completions", "whole", [Act.STALL]),
    "embedding": Case("embeddings", "whole", [Act.STALL]),
}
UNKNOWN_TO_TGI = ("chat, a role", "embedding")
"""It names the role beside each token."""
TRIED = [(case, dialect) for case in CASES for dialect in DIALECTS if dialect != "tgi" or case not in UNKNOWN_TO_TGI]


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, own_redis: RedisServer) -> Iterator[GatewayProcess]:
    """Each route has a spare target, which gets calls only if the first is taken for broken."""

    def spec(name: str, backend: str) -> dict[str, Any]:
        return {"name": f"abort-{name}", "backend": backend, "url": upstream.target(f"abort-{name}").url}

    routes: dict[str, Any] = {
        dialect: {"targets": [spec(dialect, dialect)], "fallback": [spec(f"{dialect}-spare", dialect)]}
        for dialect in DIALECTS
    }
    routes["good"] = {"targets": [spec("good", "openai")]}
    with gateway_process(json.dumps({"routes": routes}), redis_url=own_redis.url) as started:
        yield started


@pytest.fixture(scope="module")
def issued(gateway: GatewayProcess) -> Issued:
    return gateway.issue(limit=LIMIT)


def begun(gateway: GatewayProcess, target: Target, case: Case, route: str, key: str) -> Wire:
    """A call that has come as far as the case says."""
    before, opened = len(target.calls), Wire(gateway.port)
    body = chat(route, stream=case.phase != "whole")
    if case.endpoint != "chat/completions":
        body["input" if case.endpoint == "embeddings" else "prompt"] = body.pop("messages")[0]["content"]
    opened.send(request(body, key, f"/v1/{case.endpoint}"))
    target.wait_for_calls(before + 1)
    if case.sees:
        while opened.read_until(case.sees).count(case.sees) < case.wasted:
            opened.seen += opened.socket.recv(65536)
    else:
        passed_through(gateway, key)
    return opened


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize(("named", "dialect"), TRIED)
def test_all_is_given_back_and_the_target_knows_at_once(
    gateway: GatewayProcess,
    own_redis: RedisServer,
    upstream: Upstream,
    issued: Issued,
    named: str,
    dialect: str,
    way: str,
) -> None:
    case, target = CASES[named], upstream.target(f"abort-{dialect}")
    target.restore()
    target.script = case.script
    counted, took = Counted(gateway, dialect), []
    for _ in range(TRIES):
        opened = begun(gateway, target, case, dialect, issued.secret)
        took.append(leave(WAYS[way], opened, target.calls[-1]))
        opened.leave()
    in_time(took)
    counted(**{case.phase: TRIES})
    nothing_left(gateway, own_redis)
    for received in target.calls:
        line = record(gateway, received.header("x-request-id"))
        assert (line["outcome"], line["error_type"]) == ("gone", "caller_gone")
        assert line["abort"]["phase"] == case.phase
        assert line.get("wasted_tokens", 0) == case.wasted
        assert [each["outcome"] for each in line["attempts"]] == ["caller_gone"]
    target.restore()  # five failures in a row would have ejected it
    assert ask(gateway, chat(dialect), issued.secret).header("x-trunkline-target") == f"abort-{dialect}"


@pytest.mark.parametrize("named", ["chat, no headers", "chat, headers", "chat, a token", "chat, no stream"])
def test_closing_only_the_sending_side_is_leaving(
    gateway: GatewayProcess, own_redis: RedisServer, upstream: Upstream, issued: Issued, named: str
) -> None:
    """On the wire it looks like closing the connection does, until something is sent; and then it would be late."""
    case, target = CASES[named], upstream.target("abort-vllm")
    target.restore()
    target.script = case.script
    counted, opened = Counted(gateway, "vllm"), begun(gateway, target, case, "vllm", issued.secret)
    leave(WAYS["shut"], opened, target.calls[-1])
    counted(**{case.phase: 1})
    nothing_left(gateway, own_redis)
    opened.leave()


def test_what_is_held_is_seen_while_it_is_held(
    gateway: GatewayProcess, own_redis: RedisServer, upstream: Upstream, issued: Issued
) -> None:
    """That nothing is left would mean nothing if it were not seen before."""
    target, case = upstream.target("abort-vllm"), CASES["chat, a token"]
    target.restore()
    target.script = case.script
    opened = begun(gateway, target, case, "vllm", issued.secret)
    now = held(gateway, own_redis)
    assert now == {"in flight": 1, "queue": 0, "on hold": 0, "slots": 1, "reservations": 1}
    opened.leave()
    nothing_left(gateway, own_redis)


def test_clients_that_leave_before_their_body_is_whole(
    gateway: GatewayProcess, own_redis: RedisServer, upstream: Upstream, issued: Issued
) -> None:
    """Their route is not known yet."""
    target, counted = upstream.target("abort-vllm"), Counted(gateway, "other")
    target.restore()
    for way in WAYS.values():
        with wire(gateway, request(b'{"model"', issued.secret, length=1000)) as opened:
            eventually(lambda: held(gateway, own_redis)["in flight"] or None, "it is being read")
            way(opened)
            nothing_left(gateway, own_redis)
    counted(body=len(WAYS))
    assert target.calls == []


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_with_its_answer_has_been_answered(
    gateway: GatewayProcess, own_redis: RedisServer, upstream: Upstream, issued: Issued, streamed: bool
) -> None:
    """Even if it leaves the last of it unread."""
    target, counted = upstream.target("abort-openai"), Counted(gateway, "openai")
    target.restore()
    for way in WAYS.values():
        with wire(gateway, request(chat("openai", stream=streamed), issued.secret)) as opened:
            opened.read_until(b"HTTP/1.1 200")
            line = record(gateway, target.wait_for_calls(len(target.calls)).header("x-request-id"))
            way(opened)
        assert line["outcome"] == "answered" and "abort" not in line
    nothing_left(gateway, own_redis)
    counted()
