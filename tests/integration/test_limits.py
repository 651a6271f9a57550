"""Limits of a key: exact over all workers and gateways, told in OpenAI's headers, charged only when granted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.gateway_process import GatewayProcess, Issued
from harness.redis_server import RedisServer
from harness.upstream import Act, Gate, Target, answer, head, stream, whole
from integration.client import UNEXPIRED, Reply, Wire, ask, chat, eventually, record, request, wire
from redis import Redis

from gateway.core.types import Allowance, Budget, Limit

DURATION = re.compile(r"(?:\d+h)?(?:\d+m)?(?:\d+s)?|\d+ms")


def flood(gateways: Sequence[GatewayProcess], calls: int, issued: Issued, model: str) -> list[Reply]:
    """So many calls at once, spread over the gateways; a new connection each, so over their workers too."""
    with ThreadPoolExecutor(20) as threads:
        return list(threads.map(lambda i: ask(gateways[i % len(gateways)], chat(model), issued.secret), range(calls)))


def statuses(replies: list[Reply]) -> Counter[int]:
    return Counter(reply.status for reply in replies)


def test_rpm_is_exact_over_gateways_and_workers(fleet: list[GatewayProcess], shared_target: Target) -> None:
    issued = fleet[0].issue(limit=Limit(rpm=20))

    replies = flood(fleet, 100, issued, "fleet")

    granted = statuses(replies)[200]
    assert set(statuses(replies)) == {200, 429}
    assert 20 <= granted <= 22  # one more comes in for every 3 s that the flood takes
    assert len(shared_target.calls) == granted
    remaining = [int(reply.header("x-ratelimit-remaining-requests") or -1) for reply in replies if reply.status == 200]
    assert sorted(remaining)[:1] == [0]
    assert len(remaining) - len(set(remaining)) <= 2


def test_concurrency_is_exact_over_gateways_and_workers(fleet: list[GatewayProcess], shared_target: Target) -> None:
    issued = fleet[1].issue(limit=Limit(concurrency=7))
    gate = Gate()
    body = b'{"choices":[]}'
    shared_target.script = [head(content_type="application/json", content_length=len(body)), gate, body]

    with ThreadPoolExecutor(60) as threads:
        waiting = [threads.submit(ask, fleet[i % 2], chat("fleet"), issued.secret) for i in range(60)]

        def refused() -> bool | None:
            return sum(call.done() for call in waiting) == 53 or None

        eventually(refused, "53 refusals")
        eventually(lambda: len(shared_target.calls) == 7 or None, "all others are at the target")
        gate.open()
        assert statuses([call.result() for call in waiting]) == {200: 7, 429: 53}

    shared_target.restore()

    def all_free() -> bool | None:
        shared_target.script = whole(answer())
        return statuses(flood(fleet, 7, issued, "fleet")) == {200: 7} or None

    eventually(all_free, "seven slots", UNEXPIRED)


def test_both_limits_are_charged_together_or_not_at_all(gateway: GatewayProcess, solo: Target) -> None:
    """Calls refused for their concurrency use nothing of the rate."""
    issued = gateway.issue(limit=Limit(rpm=3, concurrency=1))
    gate = Gate()
    solo.scripts = [[gate, whole(answer())[0]]]
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, gateway, chat("solo"), issued.secret)
        solo.wait_for_calls()
        for _ in range(10):
            assert ask(gateway, chat("solo"), issued.secret).status == 429
        gate.open()
        assert first.result().status == 200

    def granted() -> bool | None:
        return ask(gateway, chat("solo"), issued.secret).status == 200 or None

    eventually(granted, "the second of three")
    eventually(granted, "the third of three")
    assert ask(gateway, chat("solo"), issued.secret).status == 429


@pytest.mark.parametrize(
    "body", [b"nonsense", chat("no-such"), chat("vllm")], ids=["malformed", "unknown", "forbidden"]
)
def test_refused_calls_charge_nothing(gateway: GatewayProcess, solo: Target, body: bytes | dict[str, object]) -> None:
    issued = gateway.issue(limit=Limit(rpm=1), models=("solo",))
    for _ in range(3):
        assert ask(gateway, body, issued.secret).status in (400, 403, 404)
    assert ask(gateway, chat("solo"), issued.secret).status == 200


def test_headers_tell_how_the_key_stands(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(limit=Limit(rpm=3))
    for left in (2, 1, 0):
        granted = ask(gateway, chat("solo", **({"stream": True} if left == 1 else {})), issued.secret)
        assert granted.status == 200
        assert granted.header("x-ratelimit-limit-requests") == "3"
        assert granted.header("x-ratelimit-remaining-requests") == str(left)
        assert DURATION.fullmatch(granted.header("x-ratelimit-reset-requests") or "")
        assert granted.header("retry-after") is None

    denied = ask(gateway, chat("solo"), issued.secret)

    assert denied.status == 429
    assert denied.error["type"] == "rate_limit_error"
    assert denied.error["code"] == "rate_limit_exceeded"
    assert denied.header("x-ratelimit-limit-requests") == "3"
    assert denied.header("x-ratelimit-remaining-requests") == "0"
    assert denied.header("x-ratelimit-reset-requests") in ("59s", "1m0s")
    wait = int(denied.header("retry-after-ms") or 0)
    assert 15_000 < wait <= 20_000  # one of three a minute
    assert int(denied.header("retry-after") or 0) == -(-wait // 1000)
    assert denied.header("x-should-retry") == "true"
    assert record(gateway, denied.header("x-request-id"))["outcome"] == "shed"


def test_a_call_that_waits_as_told_is_granted(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(limit=Limit(rpm=120))
    assert statuses(flood([gateway], 120, issued, "solo"))[200] == 120

    def denied() -> Reply | None:
        found = ask(gateway, chat("solo"), issued.secret)
        return found if found.status == 429 else None

    waits = [int(eventually(denied, "a denial").header("retry-after-ms") or 0)]
    assert 0 < waits[0] <= 500

    def granted() -> bool | None:
        return ask(gateway, chat("solo"), issued.secret).status == 200 or None

    eventually(granted, "a grant after the wait", waits[0] / 1000 + 0.5)


def test_a_key_without_limits_has_no_limit_headers(gateway: GatewayProcess, key: str, solo: Target) -> None:
    granted = ask(gateway, chat("solo"), key)
    assert granted.status == 200
    assert "ratelimit" not in repr(granted.headers)


def test_keys_do_not_share_their_limits(fleet: list[GatewayProcess], shared_target: Target) -> None:
    one, other = (fleet[0].issue(limit=Limit(rpm=1)) for _ in range(2))
    assert ask(fleet[0], chat("fleet"), one.secret).status == 200
    assert ask(fleet[1], chat("fleet"), one.secret).status == 429
    assert ask(fleet[1], chat("fleet"), other.secret).status == 200


def test_slots_come_back_over_redis_however_a_call_ends(fleet: list[GatewayProcess], shared_target: Target) -> None:
    issued = fleet[0].issue(limit=Limit(concurrency=1))

    def free() -> bool | None:
        return ask(fleet[1], chat("fleet"), issued.secret).status == 200 or None

    for script in (stream(Act.STALL), [Act.STALL], stream(b": wait\n\n", Act.STALL)):
        shared_target.scripts = [script]
        seen = len(shared_target.calls)
        connection = Wire(fleet[0].port)
        connection.send(request(chat("fleet", stream=True), issued.secret))
        received = shared_target.wait_for_calls(seen + 1)
        assert ask(fleet[1], chat("fleet"), issued.secret).status == 429
        connection.leave()
        assert received.closed.wait(30)
        eventually(free, "a free slot", UNEXPIRED)
    for script in ([Act.CUT], [Act.RESET], whole({}, 500), whole({}, 400)):
        shared_target.scripts = [script]
        # 200 where it was sent again because the connection might have been a stale one.
        assert ask(fleet[0], chat("fleet"), issued.secret).status in (200, 400, 502)
        eventually(free, "a free slot", UNEXPIRED)


def test_a_long_call_keeps_its_slot(fleet: list[GatewayProcess], shared_target: Target, redis: RedisServer) -> None:
    """Its lease is renewed long before it ends, as Redis itself shows."""
    issued = fleet[0].issue(limit=Limit(concurrency=1))
    shared_target.scripts = [[Act.STALL]]
    connection = Wire(fleet[0].port)
    connection.send(request(chat("fleet"), issued.secret))
    shared_target.wait_for_calls()
    with Redis.from_url(redis.url) as client:

        def deadline() -> float:
            ((_, score),) = client.zrange(f"{{tl}}:lease:key:{issued.record.id}", 0, -1, withscores=True)
            return float(score)

        first = deadline()
        eventually(lambda: deadline() > first + 1e6 or None, "a renewal")
    assert ask(fleet[1], chat("fleet"), issued.secret).status == 429
    connection.leave()


@pytest.mark.parametrize(
    "limit",
    [
        Limit(tpm=2000),
        Limit(otpm=1800),
        Limit(budget=Budget(day=Allowance(tokens=2000))),
        Limit(tpm=2000, budget=Budget(day=Allowance(tokens=90_000)), concurrency=100, rpm=1000),
    ],
    ids=["tpm", "otpm", "budget", "all"],
)
def test_tokens_are_exact_over_gateways_and_workers(
    fleet: list[GatewayProcess], shared_target: Target, limit: Limit
) -> None:
    """Each call reserves 180 of 1,800, or 200 of 2,000; none ends before all were decided on."""
    issued = fleet[0].issue(limit=limit)
    gate = Gate()
    shared_target.script = [gate, whole(answer())[0]]
    padding = 80 - len(json.dumps(chat("fleet", max_tokens=180, user="")))
    body = chat("fleet", max_tokens=180, user="x" * max(0, padding))
    with ThreadPoolExecutor(40) as threads:
        waiting = [threads.submit(ask, fleet[i % 2], body, issued.secret) for i in range(40)]

        def decided() -> bool | None:
            done = [call.result().status for call in waiting if call.done()]
            return len(done) + len(shared_target.calls) == 40 or None

        eventually(decided, "40 decisions")
        granted = len(shared_target.calls)
        gate.open()
        replies = [call.result() for call in waiting]
    assert statuses(replies) == {200: granted, 429: 40 - granted}
    # The prompt is some tokens more or less by what each worker has learned, and a little drips in meanwhile.
    assert 8 <= granted <= 11 + (limit.budget == Budget())


def test_the_ietfs_headers_are_not_sent_unasked(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(limit=Limit(rpm=3))
    for _ in range(4):
        reply = ask(gateway, chat("solo"), issued.secret)
        assert reply.header("ratelimit") is None and reply.header("ratelimit-policy") is None
        assert reply.header("x-ratelimit-limit-requests") == "3"


def test_a_long_way_to_go_is_told_in_minutes(gateway: GatewayProcess, solo: Target) -> None:
    """OpenAI's way of writing durations."""
    issued = gateway.issue(limit=Limit(tpm=1000))
    solo.script = whole(answer(prompt=3000, completion=3000))
    assert ask(gateway, chat("solo"), issued.secret).status == 200
    denied = ask(gateway, chat("solo", max_tokens=1), issued.secret)
    assert denied.status == 429
    assert re.fullmatch(r"6m0s|5m5\ds", denied.header("x-ratelimit-reset-tokens") or "")


def lengthy(key: str, model: str) -> bytes:
    """The head of a request and a part of its body, the rest of which never comes."""
    whole_one = request(chat(model, padding="x" * 100_000), key)
    return whole_one[: len(whole_one) // 2]


@pytest.mark.parametrize("limit", [Limit(rpm=1), Limit(budget=Budget(day=Allowance(tokens=40)))], ids=["rpm", "budget"])
def test_what_was_denied_is_denied_again_before_its_body_is_read(
    fleet: list[GatewayProcess], shared_target: Target, limit: Limit
) -> None:
    """Each worker learns of it by a denial of its own. A raised limit holds for the very next call all the same."""
    issued = fleet[0].issue(limit=limit)
    shared_target.script = whole(answer(prompt=30, completion=20))
    assert ask(fleet[0], chat("fleet", max_tokens=1), issued.secret).status == 200

    def denied() -> bool | None:
        return ask(fleet[0], chat("fleet", max_tokens=1), issued.secret).status == 429 or None

    eventually(denied, "what the first call has spent is settled")
    with wire(fleet[0]) as connection:  # one connection is one worker
        connection.send(request(chat("fleet", max_tokens=1), issued.secret))
        first = connection.answer()
        connection.send(lengthy(issued.secret, "fleet"))
        again = connection.answer()
    assert (first.status, again.status) == (429, 429)
    assert {"error"} == again.json().keys() and again.error["code"] == first.error["code"]
    waits = [int(reply.header("retry-after") or -1) for reply in (first, again)]
    assert 0 < waits[1] <= waits[0]
    assert record(fleet[0], again.header("x-request-id"))["outcome"] == "shed"
    with wire(fleet[0]) as connection:
        connection.send(request(chat("fleet", max_tokens=1), issued.secret))
        assert connection.answer().status == 429
        fleet[1].keys("update", issued.record.id, "--rpm", "1000000", "--budget", "day:tokens=5000")
        connection.send(request(chat("fleet", max_tokens=1), issued.secret))
        assert connection.answer().status == 200


def test_calls_at_once_that_were_too_many_are_counted_anew_each_time(
    fleet: list[GatewayProcess], shared_target: Target
) -> None:
    issued = fleet[0].issue(limit=Limit(concurrency=1, tpm=100_000))
    shared_target.scripts = [[gate := Gate(), *whole(answer())]]
    with wire(fleet[0]) as connection, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, fleet[1], chat("fleet"), issued.secret)
        shared_target.wait_for_calls()
        connection.send(request(chat("fleet"), issued.secret))
        assert connection.answer().status == 429
        gate.open()
        assert first.result().status == 200
        connection.send(request(chat("fleet"), issued.secret))
        assert connection.answer().status == 200
