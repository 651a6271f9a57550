"""Clients that leave after they have sent more than one request.

The HTTP server stops reading a connection as long as bytes lie in it that it cannot use yet, and so does not see its
end. That is noticed when something is sent, and by the limits of time that the target has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Act, Gate, Target, Upstream, answer, event, stream, whole
from integration.client import chat, request, wire
from integration.engine import Pause
from integration.leaving import LIMIT, WAYS, Counted, leave, nothing_left

BEHIND = {"a request": 1.0, "half of one": 0.5}
"""What comes behind the first request, as a part of one."""


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, own_redis: RedisServer) -> Iterator[GatewayProcess]:
    targets = [{"name": "pipe", "backend": "vllm", "url": upstream.target("pipe").url}]
    hasty = {
        "targets": [{**targets[0], "name": "hasty"}],
        "timeouts": {"first_output": "700ms", "whole": "700ms", "idle": "700ms"},
    }
    table = {"routes": {"pipe": {"targets": targets}, "hasty": hasty}}
    with gateway_process(json.dumps(table), redis_url=own_redis.url) as started:
        yield started


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("pipe")
    found.restore()
    return found


@pytest.fixture(scope="module")
def issued(gateway: GatewayProcess) -> Issued:
    return gateway.issue(limit=LIMIT)


def requests(issued: Issued, behind: str, *, streamed: bool, model: str = "pipe") -> bytes:
    one = request(chat(model, stream=streamed), issued.secret)
    return one + one[: int(len(one) * BEHIND[behind])]


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_stream_ends_with_what_cannot_be_sent(
    gateway: GatewayProcess, own_redis: RedisServer, target: Target, issued: Issued, way: str, behind: str
) -> None:
    gate, counted = Gate(), Counted(gateway, "pipe")
    flood = [step for _ in range(4000) for step in (event("Hi"), Pause(0.005))]
    target.script = stream(event("Hi"), gate, *flood, Act.STALL)
    with wire(gateway, requests(issued, behind, streamed=True)) as opened:
        received = target.wait_for_calls()
        opened.read_until(b'"Hi"')
        WAYS[way](opened)
        gate.open()
        assert received.closed.wait(18), "the flood goes on for 20 seconds"
    counted(stream=1)
    nothing_left(gateway, own_redis)
    assert len(target.calls) == 1


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_silence_ends_by_the_targets_limits_of_time(
    gateway: GatewayProcess, own_redis: RedisServer, target: Target, issued: Issued, streamed: bool
) -> None:
    """What was held by then was held by a call whose client may as well have stayed."""
    target.scripts = [[Act.STALL]]
    with wire(gateway, requests(issued, "half of one", streamed=streamed, model="hasty")) as opened:
        received = target.wait_for_calls()
        opened.leave()
        assert received.closed.wait(30)
    nothing_left(gateway, own_redis)


def test_the_second_request_of_a_client_that_left_ends_at_once_too(
    gateway: GatewayProcess, own_redis: RedisServer, target: Target, issued: Issued
) -> None:
    gate = Gate()
    target.scripts = [[gate, *whole(answer())], [Act.STALL]]
    with wire(gateway, requests(issued, "a request", streamed=False)) as opened:
        target.wait_for_calls()
        opened.leave()
        gate.open()
        nothing_left(gateway, own_redis)
    assert all(call.closed.wait(30) for call in target.calls[1:])


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_leaves_amid_its_second_call_is_noticed(
    gateway: GatewayProcess, own_redis: RedisServer, target: Target, issued: Issued, way: str
) -> None:
    counted = Counted(gateway, "pipe")
    target.scripts = [whole(answer()), [Act.STALL]]
    with wire(gateway, requests(issued, "a request", streamed=False)) as opened:
        received = target.wait_for_calls(2)
        leave(WAYS[way], opened, received)
    counted(whole=1)
    nothing_left(gateway, own_redis)
