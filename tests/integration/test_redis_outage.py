"""Redis dies while the gateway serves: known keys go on, unknown ones are told to wait, and all heals by itself."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import DONE, Gate, Target, Upstream, event, stream
from integration.client import CHAT, Reply, ask, chat, eventually, get, request, wire

from gateway.auth import token
from gateway.core.types import Limit

IMPATIENT = {"TRUNKLINE_REDIS_TIMEOUT": "0.25"}
UNKNOWN = token("Z" * 12, "z" * 43)


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def alone(upstream: Upstream, own_redis: RedisServer) -> Iterator[GatewayProcess]:
    """A gateway whose Redis these tests may kill."""
    targets = [{"name": "outage", "backend": "openai", "url": upstream.target("outage").url}]
    with gateway_process(json.dumps({"routes": {"m": {"targets": targets}}}), redis_url=own_redis.url) as started:
        yield started


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("outage")
    found.restore()
    return found


@pytest.fixture
def outage(own_redis: RedisServer, alone: GatewayProcess) -> Iterator[None]:
    """Redis is up before, and again after, each test."""
    assert is_whole(alone)
    yield
    if own_redis.process.poll() is not None:
        own_redis.restart()
    eventually(lambda: is_whole(alone), "Redis is back")


def is_whole(alone: GatewayProcess) -> bool | None:
    return get(alone, "/ready").json()["store"] == "ok" or None


@pytest.mark.usefixtures("outage")
def test_known_keys_go_on_and_unknown_ones_are_told_to_wait(
    alone: GatewayProcess, own_redis: RedisServer, target: Target
) -> None:
    known, unused = alone.issue(limit=Limit(rpm=1000, concurrency=5)), alone.issue()
    before = ask(alone, chat("m"), known.secret)
    assert before.status == 200
    assert before.header("x-trunkline-degraded") is None

    own_redis.stop()

    for _ in range(5):
        degraded = ask(alone, chat("m"), known.secret)
        assert degraded.status == 200
        assert degraded.header("x-trunkline-degraded")
        assert degraded.header("x-ratelimit-limit-requests")
    for path in (CHAT, "/v1/models"):
        for secret in (UNKNOWN, unused.secret):
            refused = ask(alone, chat("m"), secret, path, method="POST" if path == CHAT else "GET")
            assert refused.status == 503
            assert refused.error["code"] == "store_unavailable"
            assert refused.header("retry-after")
    assert ask(alone, chat("m"), "sk-not-one-of-ours").status == 401
    assert get(alone, "/health").status == 200
    assert get(alone, "/v1/models", known.secret).status == 200
    ready = get(alone, "/ready")
    assert ready.status == 200
    assert "down" in ready.json()["store"]
    assert own_redis.url.partition("//")[2] not in ready.json()["targets"]

    own_redis.restart()  # empty: what was stored is gone, too
    eventually(lambda: is_whole(alone), "Redis is back")
    for secret in (UNKNOWN, unused.secret):
        assert ask(alone, chat("m"), secret).status == 503, (
            "a Redis without memory cannot say that there is no such key"
        )
    fresh = alone.issue(limit=Limit(rpm=10))

    def refused_as_unknown() -> Reply | None:
        found = ask(alone, chat("m"), UNKNOWN)
        return found if found.status == 401 else None

    eventually(refused_as_unknown, "unknown keys are unknown again")
    healed = ask(alone, chat("m"), fresh.secret)
    assert healed.status == 200
    assert healed.header("x-trunkline-degraded") is None
    assert alone.process.poll() is None
    assert "Traceback" not in alone.stderr()


@pytest.mark.usefixtures("outage")
def test_limits_hold_while_redis_is_away(alone: GatewayProcess, own_redis: RedisServer, target: Target) -> None:
    known = alone.issue(limit=Limit(rpm=5))
    assert ask(alone, chat("m"), known.secret).status == 200
    own_redis.stop()
    statuses = [ask(alone, chat("m"), known.secret).status for _ in range(12)]
    assert statuses.count(200) == 5
    assert statuses.count(429) == 7


@pytest.mark.usefixtures("outage")
def test_a_frozen_redis_costs_a_call_little(alone: GatewayProcess, own_redis: RedisServer, target: Target) -> None:
    """It accepts and never answers: worse than being gone."""
    known = alone.issue(limit=Limit(rpm=1000))
    assert ask(alone, chat("m"), known.secret).status == 200
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            degraded = ask(alone, chat("m"), known.secret)
            assert degraded.status == 200
            assert degraded.header("x-trunkline-degraded")
        assert ask(alone, chat("m"), UNKNOWN).status == 503
    finally:
        own_redis.process.send_signal(signal.SIGCONT)

    def healed() -> bool | None:
        found = ask(alone, chat("m"), known.secret)
        return (found.status == 200 and found.header("x-trunkline-degraded") is None) or None

    eventually(healed, "limits are shared again")


@pytest.mark.usefixtures("outage")
def test_calls_under_way_do_not_notice(alone: GatewayProcess, own_redis: RedisServer, target: Target) -> None:
    known = alone.issue(limit=Limit(concurrency=1))
    gate = Gate()
    target.script = stream(event("Hi"), gate, event(finish="stop"), DONE)
    with wire(alone, request(chat("m", stream=True), known.secret)) as connection:
        connection.read_until(b"Hi")
        own_redis.stop()
        gate.open()
        connection.read_until(b"[DONE]")
    target.restore()
    assert ask(alone, chat("m"), known.secret).status == 200
    own_redis.restart()
