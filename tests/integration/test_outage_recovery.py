"""Redis comes back: what was spent meanwhile is owed, what ended meanwhile is settled, and all heals by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import DONE, Gate, Target, Upstream, answer, event, stream, usage_event, whole
from integration.client import ask, chat, eventually, request, samples, total, wire
from integration.outages import DURABLE, flood, introduce, outage
from integration.outages import IMPATIENT as IMPATIENT

from gateway.core.types import Allowance, Budget, Limit


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """One that keeps what it knows when it is killed."""
    with redis_server(options=DURABLE) as server:
        yield server


@pytest.fixture(scope="module")
def alone(upstream: Upstream, own_redis: RedisServer) -> Iterator[GatewayProcess]:
    """Two workers, whose Redis these tests may kill."""
    targets = [{"name": "recovery", "backend": "openai", "url": upstream.target("recovery").url}]
    table = json.dumps({"routes": {"m": {"targets": targets, "price": {"input": 1, "output": 1}}}})
    with gateway_process(table, redis_url=own_redis.url, workers=2) as started:
        yield started


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("recovery")
    found.restore()
    return found


def test_a_limit_of_another_scope_that_is_closed_closes(
    alone: GatewayProcess, own_redis: RedisServer, target: Target
) -> None:
    tenant = f"strict-{time.monotonic_ns()}"
    alone.said("tenants", "set", tenant, "--rpm", "1000", "--outage", "rpm=closed")
    issued = alone.issue(tenant=tenant, limit=Limit(rpm=100, outage={"rpm": "open"}))
    assert ask(alone, chat("m"), issued.secret).status == 200
    with outage(alone, own_redis, issued):
        refused = ask(alone, chat("m"), issued.secret)
        assert (refused.status, refused.error["code"]) == (503, "limits_unavailable")
    assert ask(alone, chat("m"), issued.secret).status == 200


def test_state_changes_are_told_once(alone: GatewayProcess, own_redis: RedisServer, target: Target) -> None:
    """A line for each worker and change, however many calls notice; nothing of a traceback."""
    issued = alone.issue(limit=Limit(rpm=100_000))
    flood(alone, issued, 20)
    before = alone.stderr()
    with outage(alone, own_redis, issued):
        for _ in range(3):
            assert flood(alone, issued, 20) == {200: 20}
    for _ in range(3):
        flood(alone, issued, 20)
    said = alone.stderr()[len(before) :].splitlines()
    for words in ("counted in this gateway only", "shared again"):
        assert 1 <= sum(words in line for line in said) <= 2, said
    assert (
        sum("Redis does not answer" in line and "counted" not in line for line in said) <= 6
    )  # each pipe of each worker
    assert "Traceback" not in "".join(said)
    assert len(said) <= 20, said
    eventually(lambda: total(samples(alone), "limits_degraded") == 0 or None, "the gauge falls")
    for _ in range(10):
        assert ask(alone, chat("m"), issued.secret).header("x-trunkline-degraded") is None


def test_the_end_of_an_outage_is_noticed_without_a_call(
    alone: GatewayProcess, own_redis: RedisServer, target: Target
) -> None:
    """Or a gateway that nobody calls would look as if its Redis were still away."""
    issued = alone.issue(limit=Limit(rpm=100_000))
    with outage(alone, own_redis, issued):
        assert flood(alone, issued, 10) == {200: 10}
        assert total(samples(alone), "limits_degraded") == 1
    eventually(lambda: total(samples(alone), "limits_degraded") == 0 or None, "the gauge falls")


def settled(own_redis: RedisServer, issued: Issued) -> bool | None:
    """No call of the key holds anything of its budget."""
    return own_redis.ask("HGET", f"{{tl}}:budget:key:{issued.record.id}:day:tokens", "o") == "0" or None


def spent(own_redis: RedisServer, issued: Issued, unit: str = "tokens") -> int:
    """What Redis knows that a key has spent today."""
    return int(own_redis.ask("HGET", f"{{tl}}:budget:key:{issued.record.id}:day:{unit}", "s") or 0)


@pytest.mark.parametrize("policy", ["share", "open"])
def test_what_was_spent_meanwhile_is_owed(
    alone: GatewayProcess, own_redis: RedisServer, target: Target, policy: Any
) -> None:
    """Once, whichever worker it was."""
    whole_budget = Budget(day=Allowance(tokens=10_000, cost_micros=10_000))
    issued = alone.issue(limit=Limit(budget=whole_budget, outage={"budget": policy}))
    target.script = whole(answer(prompt=100, completion=20))
    assert flood(alone, issued, 3) == {200: 3}
    introduce(alone, issued)
    eventually(lambda: settled(own_redis, issued), "all is settled")
    before = spent(own_redis, issued)
    assert before % 120 == 0
    with outage(alone, own_redis):
        assert flood(alone, issued, 4, chat("m", max_tokens=20)) == {200: 4}

    def owed() -> bool | None:
        return all(spent(own_redis, issued, unit) == before + 480 for unit in ("tokens", "cost")) or None

    eventually(owed, "what was spent meanwhile")
    target.script = whole(answer(prompt=100, completion=10_000 - 100 - before - 480))
    assert ask(alone, chat("m"), issued.secret).status == 200
    eventually(lambda: spent(own_redis, issued) == 10_000 or None, "all of it is spent")
    denied = ask(alone, chat("m", max_tokens=10), issued.secret)
    assert (denied.status, denied.error["code"]) == (429, "insufficient_quota")


def test_calls_that_end_meanwhile_are_settled_once_and_their_slots_are_free(
    alone: GatewayProcess, own_redis: RedisServer, target: Target
) -> None:
    budget = Budget(day=Allowance(tokens=10_000))
    issued = alone.issue(limit=Limit(concurrency=2, budget=budget, outage={"budget": "share"}))
    gate = Gate()
    target.scripts = [stream(event("Hi"), gate, event(finish="stop"), usage_event(100, 20), DONE)] * 2
    body = request(chat("m", stream=True, max_tokens=900), issued.secret)
    with wire(alone, body) as one, wire(alone, body) as other:
        for each in (one, other):
            each.read_until(b"Hi")
        with outage(alone, own_redis):
            gate.open()
            for each in (one, other):
                each.read_until(b"[DONE]")
    eventually(lambda: spent(own_redis, issued) == 240 or None, "both calls")

    def all_free() -> bool | None:
        return own_redis.ask("ZCARD", f"{{tl}}:lease:key:{issued.record.id}") == 0 or None

    eventually(all_free, "no slot is taken")
    assert settled(own_redis, issued)
    eventually(lambda: total(samples(alone), "settle_pending") == 0 or None, "nothing waits")


def test_slots_taken_before_count_meanwhile_and_afterwards(
    alone: GatewayProcess, own_redis: RedisServer, target: Target
) -> None:
    issued = alone.issue(limit=Limit(concurrency=4))
    gate = Gate()
    script = stream(event("Hi"), gate, event(finish="stop"), usage_event(), DONE)
    target.scripts = [script] * 4
    body = request(chat("m", stream=True), issued.secret)
    with wire(alone, body) as a, wire(alone, body) as b, wire(alone, body) as c, wire(alone, body) as d:
        streams = (a, b, c, d)
        for each in streams:
            each.read_until(b"Hi")
        with outage(alone, own_redis, issued):
            assert set(flood(alone, issued, 20)) <= {200, 429}
        assert flood(alone, issued, 10) == {429: 10}
        gate.open()
        for each in streams:
            each.read_until(b"[DONE]")
    assert ask(alone, chat("m"), issued.secret).status == 200


def test_an_empty_redis_gets_its_budgets_back_from_what_is_left(upstream: Upstream, target: Target) -> None:
    """Counters and records live apart; the counters are lost, the ledger is not: what was spent stays spent."""
    targets = [{"name": "recovery", "backend": "openai", "url": target.url}]
    table = json.dumps({"routes": {"m": {"targets": targets}}})
    with redis_server() as counters, redis_server() as records:
        env = {"TRUNKLINE_RECORDS_URL": records.url}
        with gateway_process(table, redis_url=counters.url, env=env) as gateway:
            created = gateway.key("--budget", "day:tokens=1000", "--rpm", "1000")
            secret = created["secret"]
            target.script = whole(answer(prompt=500, completion=300))
            assert ask(gateway, chat("m", max_tokens=300), secret).status == 200

            def entered() -> bool | None:
                rows = gateway.said("usage", "--by", "key")["rows"]
                return any(row["input"] + row["output"] == 800 for row in rows) or None

            eventually(entered, "the ledger has the call")
            counters.ask("FLUSHALL")

            def decided() -> int | None:
                status = ask(gateway, chat("m", max_tokens=300), secret).status
                return status if status != 503 else None

            assert eventually(decided, "the budgets are rebuilt") == 429
            assert ask(gateway, chat("m", max_tokens=20), secret).status == 200
