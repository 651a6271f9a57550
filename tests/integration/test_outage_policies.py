"""What each limit does while Redis is away, by its policy: one outage of Redis, and a key for each case."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Gate, Target, Upstream, answer, whole
from integration.client import ask, chat, eventually, samples, total
from integration.outages import DURABLE, HONEST, flood, outage
from integration.outages import IMPATIENT as IMPATIENT

from gateway.core.types import Allowance, Budget, Limit

LIMITS: dict[str, dict[str, Any]] = {
    "rpm": {"rpm": 8},
    "tpm": {"tpm": 8000},
    "itpm": {"itpm": 8000},
    "otpm": {"otpm": 8000},
    "concurrency": {"concurrency": 8},
    "budget": {"budget": Budget(day=Allowance(tokens=8000))},
}
"""Each holds seven or eight calls of about 1,000 tokens at once."""
POLICIES = ("share", "closed", "open", None)


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """One that keeps what it knows when it is killed."""
    with redis_server(options=DURABLE) as server:
        yield server


@pytest.fixture(scope="module")
def alone(upstream: Upstream, own_redis: RedisServer) -> Iterator[GatewayProcess]:
    """Two workers, whose Redis these tests may kill."""
    targets = [{"name": "policies", "backend": "openai", "url": upstream.target("policies").url}]
    table = json.dumps({"routes": {"m": {"targets": targets, "price": {"input": 1, "output": 1}}}})
    with gateway_process(table, redis_url=own_redis.url, workers=2) as started:
        yield started


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("policies")
    found.restore()
    found.script = HONEST
    return found


def large() -> dict[str, Any]:
    """About 1,000 tokens, whichever tokens are meant, by any ratio that was learned here."""
    return chat("m", max_tokens=900, user="x" * 3900)


@pytest.fixture(scope="module")
def during(
    upstream: Upstream, alone: GatewayProcess, own_redis: RedisServer
) -> Iterator[dict[tuple[str, Any], Issued]]:
    """One outage for many tests, and a key for each limit and policy."""
    upstream.target("policies").script = HONEST
    keys = {
        (name, policy): alone.issue(limit=Limit(**limit, outage={} if policy is None else {name: policy}))  # type: ignore[dict-item]
        for name, limit in LIMITS.items()
        for policy in POLICIES
    }
    with outage(alone, own_redis, *keys.values()):
        yield keys


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_shared_limits_hold_over_the_workers(
    during: dict[tuple[str, Any], Issued], alone: GatewayProcess, target: Target, name: str
) -> None:
    """Each worker lets in its half: together no more than the limit, and nobody is locked out."""
    gate = Gate()
    target.script = [gate, whole(answer(prompt=1000, completion=900))[0]]
    with ThreadPoolExecutor(30) as threads:
        waiting = [threads.submit(ask, alone, large(), during[name, "share"].secret) for _ in range(30)]

        def decided() -> bool | None:
            return sum(call.done() for call in waiting) + len(target.calls) == 30 or None

        eventually(decided, "30 decisions")
        granted = len(target.calls)
        gate.open()
        replies = [call.result() for call in waiting]
    assert 1 <= granted <= 8 + (name != "concurrency")  # a little drips in meanwhile
    assert Counter(reply.status for reply in replies) == {200: granted, 429: 30 - granted}
    for reply in replies:
        assert reply.header("x-trunkline-degraded") == "limits-local"


@pytest.mark.parametrize("name", sorted(LIMITS))
@pytest.mark.parametrize("policy", ["closed", None])
def test_closed_limits_let_nothing_in(
    during: dict[tuple[str, Any], Issued], alone: GatewayProcess, target: Target, name: str, policy: str | None
) -> None:
    """Budgets are closed unless something else was said."""
    reply = ask(alone, chat("m", max_tokens=10), during[name, policy].secret)
    if policy is None and name != "budget":
        assert reply.status == 200
        return
    assert reply.status == 503
    assert (reply.error["code"], reply.error["type"]) == ("limits_unavailable", "server_error")
    assert int(reply.header("retry-after") or 0) >= 1
    assert reply.header("x-should-retry") != "false"
    assert target.calls == []


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_open_limits_let_everything_in(
    during: dict[tuple[str, Any], Issued], alone: GatewayProcess, target: Target, name: str
) -> None:
    issued = during[name, "open"]
    assert flood(alone, issued, 30, large()) == {200: 30}
    reply = ask(alone, large(), issued.secret)
    assert reply.header("x-trunkline-degraded") == "limits-local"


@pytest.mark.usefixtures("during")
def test_the_outage_is_a_metric(alone: GatewayProcess) -> None:
    assert total(samples(alone), "limits_degraded") == 1
