"""What went wrong elsewhere, one test each: those bugs that take whole gateways to show.

The rest, about how counters are kept, are in tests/contract/test_peer_bugs.py. Numbers are of BerriAI/litellm unless
the name says otherwise. Spending is read where it is kept, in Redis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Act, Gate, Script, Target, Upstream, answer, event, stream, whole
from integration.client import Reply, ask, chat, eventually, record, request, wire
from integration.test_admin import administer, said

from gateway.core.types import Allowance, Budget, Limit

HASTY = {"first_output": "500ms", "whole": "500ms"}
EMBEDDING = {"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 5, "total_tokens": 5}}
CALLS: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "Hi"}]}, answer()),
    "/v1/completions": ({"prompt": "Hi"}, {**answer(), "object": "text_completion"}),
    "/v1/embeddings": ({"input": "Hi"}, EMBEDDING),
}


@pytest.fixture(scope="module")
def pair(upstream: Upstream, redis: RedisServer) -> Iterator[list[GatewayProcess]]:
    """Two gateways with admin listeners on one Redis."""

    def targets(*names: str) -> list[dict[str, Any]]:
        return [{"name": name, "backend": "openai", "url": upstream.target(name).url} for name in names]

    table = {
        "routes": {
            "m": {"targets": targets("bugs")},
            "hasty": {"targets": [{**targets("bugs")[0], "name": "bugs-hasty"}], "timeouts": HASTY},
            "again": {"targets": targets("bugs-a", "bugs-b"), "policy": "round-robin", "retry": {"attempts": 2}},
        }
    }
    starting = [gateway_process(json.dumps(table), redis_url=redis.url, admin=True) for _ in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as starters:
        started = list(starters.map(lambda each: each.__enter__(), starting))
        for each in starting:
            stack.push(each)
        yield started


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("bugs")
    found.restore()
    return found


def spending(tokens: int, **fields: Any) -> Limit:
    """A limit whose budget of tokens shows what was spent."""
    return Limit(budget=Budget(month=Allowance(tokens=tokens)), **fields)


def booked(redis: RedisServer, issued: Issued) -> tuple[int, int]:
    """Tokens that a key has spent this month, and those that its calls under way have reserved."""
    found = redis.ask("HMGET", f"{{tl}}:budget:key:{issued.record.id}:month:tokens", "s", "o")
    return int(found[0] or 0), int(found[1] or 0)


def settled(redis: RedisServer, issued: Issued) -> int:
    """What was spent, once no call is under way."""

    def look() -> tuple[int] | None:
        spent, reserved = booked(redis, issued)
        return (spent,) if reserved == 0 else None

    return eventually(look, "nothing is reserved any more")[0]


def slots(redis: RedisServer, issued: Issued) -> int:
    """Slots that a key's calls hold."""
    return int(redis.ask("ZCARD", f"{{tl}}:lease:key:{issued.record.id}"))


def no_slots(redis: RedisServer, issued: Issued, seconds: float = 2) -> None:
    """At once, that is: not when leases expire."""
    eventually(lambda: slots(redis, issued) == 0 or None, "no slot is held", seconds)


def held(script: Script | None = None) -> tuple[Gate, Script]:
    """An answer that waits until the gate is opened."""
    gate = Gate()
    return gate, [gate, *(script or whole(answer()))]


def at_once(gateways: list[GatewayProcess], bodies: list[dict[str, Any]], key: str) -> list[Reply]:
    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(lambda n: ask(gateways[n % len(gateways)], bodies[n], key), range(len(bodies))))


def test_litellm_18730_parallel_calls_do_not_pass_together(
    pair: list[GatewayProcess], target: Target, redis: RedisServer
) -> None:
    """Tokens were counted when a call had ended, so five parallel calls used 663 of 100 tokens a minute."""
    issued = pair[0].issue(limit=Limit(tpm=100))
    gate, target.script = held()
    with ThreadPoolExecutor(5) as threads:
        waiting = [threads.submit(ask, pair[n % 2], chat("m", max_tokens=60), issued.secret) for n in range(5)]
        eventually(lambda: sum(each.done() for each in waiting) == 4 or None, "four are refused")
        target.wait_for_calls(1)
        assert len(target.calls) == 1
        gate.open()
        assert sorted(each.result().status for each in waiting) == [200, 429, 429, 429, 429]


@pytest.mark.parametrize("limit", [Limit(tpm=100), Limit(otpm=20), spending(100)], ids=["tpm", "otpm", "budget"])
def test_litellm_28805_a_small_limit_is_no_refusal_for_ever(
    pair: list[GatewayProcess], target: Target, limit: Limit
) -> None:
    """The default estimate of an answer was larger than small limits: 429 for ever, with nothing used. (#29193 too)"""
    issued = pair[0].issue(limit=limit)
    for _ in range(2):
        reply = ask(pair[0], chat("m"), issued.secret)
        assert reply.status == 200, reply


def test_litellm_28805_what_can_never_fit_is_not_called_a_rate_limit(
    pair: list[GatewayProcess], target: Target
) -> None:
    """A call that asks for more than the whole limit is told so at once, and told not to come again."""
    issued = pair[0].issue(limit=Limit(tpm=100))
    reply = ask(pair[0], chat("m", max_tokens=101), issued.secret)
    assert reply.status == 400
    assert reply.header("x-should-retry") == "false"
    assert reply.header("retry-after") is None
    assert target.calls == []


@pytest.mark.parametrize("swapped", [False, True])
def test_litellm_37001_the_larger_of_both_bounds_is_reserved(
    pair: list[GatewayProcess], target: Target, redis: RedisServer, swapped: bool
) -> None:
    """With `max_tokens: 1` and `max_completion_tokens: 10000` two tokens were reserved."""
    small, large = ("max_completion_tokens", "max_tokens") if swapped else ("max_tokens", "max_completion_tokens")
    issued = pair[0].issue(limit=spending(15_000))
    gate, target.script = held()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, pair[0], chat("m", **{small: 1, large: 10_000}), issued.secret)
        target.wait_for_calls()
        assert 10_000 <= booked(redis, issued)[1] <= 10_100
        assert ask(pair[1], chat("m", **{small: 1, large: 10_000}), issued.secret).status == 429
        gate.open()
        assert first.result().status == 200
    assert settled(redis, issued) == 7


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": ""}]], ids=["none", "empty"])
def test_litellm_35422_and_31952_nothing_to_count_reserves_something_but_not_everything(
    pair: list[GatewayProcess], target: Target, redis: RedisServer, messages: list[Any]
) -> None:
    """An estimate of zero meant that nothing was enforced, or, in review of the repair, that all was reserved."""
    issued = pair[0].issue(limit=spending(100_000))
    gate, target.script = held()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, pair[0], {"model": "m", "messages": messages}, issued.secret)
        target.wait_for_calls()
        assert 0 < booked(redis, issued)[1] < 10_000
        gate.open()
        assert first.result().status == 200


def test_litellm_31952_a_call_that_was_retried_is_settled_once(
    pair: list[GatewayProcess], upstream: Upstream, redis: RedisServer
) -> None:
    """Each attempt on another deployment settled the reservation once more."""
    bad, good = upstream.target("bugs-a"), upstream.target("bugs-b")
    bad.restore()
    good.restore()
    issued = pair[0].issue(limit=spending(1000, rpm=600, tpm=60_000, concurrency=5))
    retried = 0
    for n in range(1, 5):
        bad.script = whole({"error": {"message": "no"}}, 500)
        reply = ask(pair[0], chat("again"), issued.secret)
        assert reply.status == 200
        retried += len(record(pair[0], reply.header("x-request-id"))["attempts"]) == 2
        assert settled(redis, issued) == 7 * n
        assert int(reply.header("x-ratelimit-remaining-requests") or 0) >= 600 - n
    assert retried >= 1
    no_slots(redis, issued)


def test_litellm_31952_a_call_whose_attempts_all_failed_costs_nothing(
    pair: list[GatewayProcess], upstream: Upstream, redis: RedisServer
) -> None:
    """Two attempts, no answer: everything that was reserved comes back, once."""
    for name in ("bugs-a", "bugs-b"):
        upstream.target(name).restore()
        upstream.target(name).script = whole({"error": {"message": "no"}}, 500)
    issued = pair[0].issue(limit=spending(1000, concurrency=5))
    assert ask(pair[0], chat("again"), issued.secret).status in (502, 503)
    assert settled(redis, issued) == 0
    no_slots(redis, issued)


ABORTS: dict[str, Script] = {
    "before the head": [Act.STALL],
    "after the head": stream(Act.STALL),
    "in mid-stream": stream(event("Hi"), event("Hi"), Act.STALL),
}


@pytest.mark.parametrize("phase", ABORTS)
def test_litellm_27955_a_client_that_leaves_takes_no_slot_with_it(
    pair: list[GatewayProcess], target: Target, redis: RedisServer, phase: str
) -> None:
    """The counter of running calls was not lowered when a client aborted: after a few of those the key was locked."""
    issued = pair[0].issue(limit=Limit(concurrency=2))
    for round in range(1, 7):
        target.script = ABORTS[phase]
        with wire(pair[round % 2], request(chat("m", stream=True), issued.secret)) as connection:
            target.wait_for_calls(round)
            if phase == "in mid-stream":
                connection.read_until(b"Hi")
            assert slots(redis, issued) == 1
        no_slots(redis, issued)


@pytest.mark.parametrize("phase", ABORTS)
def test_litellm_28160_a_client_that_leaves_does_not_cancel_the_settlement(
    pair: list[GatewayProcess], target: Target, redis: RedisServer, phase: str
) -> None:
    """Settling ran in the client's own task, and ended with it: the reservation stayed, the tokens were not counted."""
    issued = pair[0].issue(limit=spending(10_000, tpm=100_000))
    target.script = ABORTS[phase]
    with wire(pair[0], request(chat("m", stream=True, max_tokens=5000), issued.secret)) as connection:
        target.wait_for_calls()
        assert booked(redis, issued)[1] >= 5000
        if phase == "in mid-stream":
            connection.read_until(b"Hi")
    spent = settled(redis, issued)
    assert 0 <= spent < 200  # what was read of the prompt and streamed, not what was reserved
    assert phase != "in mid-stream" or spent > 0


def test_litellm_20256_a_call_that_timed_out_holds_no_slot(
    pair: list[GatewayProcess], target: Target, redis: RedisServer
) -> None:
    """A call that timed out never gave its slot back: the key was locked until Redis was restarted."""
    issued = pair[0].issue(limit=spending(1000, concurrency=1))
    for _ in range(2):
        target.script = [Act.STALL]
        assert ask(pair[0], chat("hasty"), issued.secret).status == 504
        no_slots(redis, issued)
    target.restore()
    assert eventually(lambda: ask(pair[1], chat("m"), issued.secret).status == 200 or None, "the target is tried")


def test_litellm_9820_a_revoked_key_ends_on_every_gateway(fleet: list[GatewayProcess], shared_target: Target) -> None:
    """A blocked key went on working on other replicas, from their caches."""
    issued = fleet[0].issue(limit=Limit(rpm=10_000))
    body = [chat("fleet")] * 24
    assert {reply.status for reply in at_once(fleet, body, issued.secret)} == {200}  # every worker knows it now
    fleet[0].keys("revoke", issued.record.id)
    seen = len(shared_target.calls)
    assert {reply.status for reply in at_once(fleet, body, issued.secret)} == {401}
    assert len(shared_target.calls) == seen


def test_litellm_9820_a_narrowed_key_is_narrow_on_every_gateway(
    fleet: list[GatewayProcess], shared_target: Target
) -> None:
    """The same for a change that takes rights away instead of all."""
    issued = fleet[0].issue(limit=Limit(rpm=10_000))
    body = [chat("fleet")] * 24
    assert {reply.status for reply in at_once(fleet, body, issued.secret)} == {200}
    fleet[0].keys("update", issued.record.id, "--model", "another-model")
    assert {reply.status for reply in at_once(fleet, body, issued.secret)} <= {403, 404}


def test_litellm_35535_a_revoked_admin_key_ends_everywhere_at_once(pair: list[GatewayProcess]) -> None:
    """A cached admin key skipped the check whether it had been blocked."""
    root = pair[0].said("admin", "create", "--name", "root")["secret"]
    made = said(pair[0], "POST", "/admin-keys", {"name": "other"}, key=root)
    for gateway in pair * 3:
        said(gateway, "GET", "/keys", key=made["secret"])
    key_id = re.match(r"tladm_(\w{12})_", made["secret"])
    assert key_id is not None
    said(pair[0], "DELETE", f"/admin-keys/{key_id[1]}", key=root)
    for gateway in pair * 3:
        for method, path in (("GET", "/keys"), ("GET", "/audit"), ("GET", "/tenants")):
            assert administer(gateway, method, path, key=made["secret"]).status == 401
    assert administer(pair[1], "POST", "/keys", {"name": "late"}, key=made["secret"]).status == 401


def test_bifrost_3547_replicas_share_one_budget(
    fleet: list[GatewayProcess], shared_target: Target, redis: RedisServer
) -> None:
    """Budgets lived in each process: so many replicas, so many times the cap."""
    issued = fleet[0].issue(limit=spending(300))
    replies = [reply for _ in range(3) for reply in at_once(fleet, [chat("fleet", max_tokens=2)] * 24, issued.secret)]
    granted = sum(reply.status == 200 for reply in replies)
    assert {reply.status for reply in replies} == {200, 429}
    spent = settled(redis, issued)
    assert spent == 7 * granted == 7 * len(shared_target.calls)
    assert 300 - 40 <= spent <= 300  # less than one more call is left
    for gateway in fleet:
        refused = ask(gateway, chat("fleet", max_tokens=50), issued.secret)
        assert refused.status == 429
        assert refused.error["code"] == "insufficient_quota"


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("limit", [Limit(rpm=1), Limit(tpm=100), spending(100)], ids=["rpm", "tpm", "budget"])
def test_bifrost_2873_every_endpoint_enforces(
    pair: list[GatewayProcess], target: Target, path: str, limit: Limit
) -> None:
    """A pass-through route went around budgets: whatever was refused elsewhere was served there."""
    issued = pair[0].issue(limit=limit)
    for spender, (fields, answered) in CALLS.items():  # whichever endpoint spends it first
        if spender != path:
            target.script = whole({**answered, "usage": {"prompt_tokens": 500, "total_tokens": 500}})
            assert ask(pair[0], {"model": "m", **fields}, issued.secret, spender).status == 200
            break
    fields, answered = CALLS[path]
    target.script = whole(answered)
    for options in ({}, {"stream": True}):
        reply = ask(pair[1], {"model": "m", **fields, **options}, issued.secret, path)
        assert reply.status == 429, reply
    assert len(target.calls) == 1


def test_bifrost_2873_unknown_paths_reach_no_target(pair: list[GatewayProcess], target: Target) -> None:
    """What is not known to be limited is not served at all."""
    issued = pair[0].issue()
    for path in (
        "/v1/responses",
        "/v1/audio/transcriptions",
        "/v1/images/generations",
        "/v1/chat/completions/../embeddings",
        "/v1/engines/m/completions",
        "/bugs/v1/chat/completions",
        "/generate",
        "/tokenize",
        "/metrics/../v1/chat/completions",
    ):
        assert ask(pair[0], chat("m"), issued.secret, path).status in (400, 404, 405), path
    assert target.calls == []
