"""Calls that go on with a response of before go to the server that has it, for the tenant that made it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.captures import GOLDEN, read_capture
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream, stream, whole
from integration.client import Reply, ask

PATH = "/v1/responses"
WHOLE = read_capture(GOLDEN / "vllm" / "vllm-responses.txt").body
STREAM = read_capture(GOLDEN / "vllm" / "vllm-responses-stream.txt").body
NAMES = ("first", "second", "third")


def table(upstream: Upstream, names: tuple[str, ...]) -> str:
    targets = [
        {"name": f"keeper-{name}", "backend": "vllm", "url": upstream.target(f"keeper-{name}").url} for name in names
    ]
    return json.dumps({"routes": {"m": {"targets": targets, "policy": "round-robin"}}})


@pytest.fixture(scope="module")
def alone(upstream: Upstream) -> Iterator[GatewayProcess]:
    with gateway_process(table(upstream, NAMES)) as started:
        yield started


@pytest.fixture
def targets(upstream: Upstream) -> list[Target]:
    found = [upstream.target(f"keeper-{name}") for name in NAMES]
    for each in found:
        each.restore()
        each.script = whole(WHOLE)
    return found


def respond(gateway: GatewayProcess, key: str, **fields: Any) -> Reply:
    return ask(gateway, {"model": "m", "input": "Hi", **fields}, key, PATH)


def made_by(reply: Reply) -> str:
    return reply.header("x-trunkline-target") or ""


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_goes_where_the_response_is(
    alone: GatewayProcess, targets: list[Target], upstream: Upstream, streamed: bool
) -> None:
    key = alone.issue(tenant=f"tenant-{streamed}").secret
    for each in targets:
        each.script = stream(STREAM) if streamed else whole(WHOLE)
    first = respond(alone, key, store=True, stream=streamed)
    found = b"resp_93cc33f8e5c542cc" if streamed else b"resp_b1820432c5e928da"
    assert found in first.body
    for _ in range(4):
        again = respond(alone, key, stream=streamed, store=True, previous_response_id=found.decode())
        assert (again.status, made_by(again)) == (200, made_by(first))
        sent = upstream.target(made_by(first)).calls[-1].json()
        assert (sent["previous_response_id"], sent["store"]) == (found.decode(), True)


def test_a_response_is_its_tenants_alone(alone: GatewayProcess, targets: list[Target]) -> None:
    mine, others = alone.issue(tenant="mine").secret, alone.issue(tenant="others").secret
    made = respond(alone, mine, store=True).json()["id"]
    refused = respond(alone, others, previous_response_id=made)
    assert (refused.status, refused.error["code"]) == (404, "previous_response_not_found")
    assert refused.error["param"] == "previous_response_id"


def test_what_was_not_to_be_kept_cannot_be_gone_on_with(alone: GatewayProcess, targets: list[Target]) -> None:
    key = alone.issue(tenant="forgetful").secret
    made = respond(alone, key).json()["id"]
    sent = [call for each in targets for call in each.calls]
    assert sent[-1].json()["store"] is False
    assert respond(alone, key, previous_response_id=made).status == 404


@pytest.mark.parametrize("value", ["resp_none", "x" * 5000, "\u0000"])
def test_an_id_that_nobody_knows_is_not_found(alone: GatewayProcess, targets: list[Target], value: str) -> None:
    assert respond(alone, alone.issue().secret, previous_response_id=value).status == 404


def test_an_id_that_is_no_text_is_refused(alone: GatewayProcess, targets: list[Target]) -> None:
    reply = respond(alone, alone.issue().secret, previous_response_id=3)
    assert (reply.status, reply.error["param"]) == (400, "previous_response_id")


def test_another_gateway_knows_it_and_tells_when_its_target_is_gone(
    upstream: Upstream, redis: RedisServer, targets: list[Target]
) -> None:
    with gateway_process(table(upstream, NAMES[:1]), redis_url=redis.url) as one:
        key = one.issue(tenant="moves").secret
        made = respond(one, key, store=True).json()["id"]
        with gateway_process(table(upstream, NAMES), redis_url=redis.url) as two:
            for _ in range(3):
                assert made_by(respond(two, key, previous_response_id=made)) == "keeper-first"
        with gateway_process(table(upstream, NAMES[1:]), redis_url=redis.url) as three:
            gone = respond(three, key, previous_response_id=made)
            assert (gone.status, gone.error["code"]) == (404, "previous_response_gone")
