"""Clients that leave while no target works for them, or several do: queue, retry, shadow, Redis, deadlines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.link import Link, link
from harness.redis_server import RedisServer, free_port, redis_server
from harness.upstream import Act, Target, Upstream, event, stream, whole
from integration.client import UNEXPIRED, Wire, ask, chat, eventually, record, request, samples, total, wire
from integration.leaving import (
    LIMIT,
    TRIES,
    WAYS,
    Counted,
    held,
    in_time,
    leave,
    nothing_left,
    passed_through,
)

NAMES = ("queue", "first", "second", "primary", "copy", "late", "good")
FIRST_BYTE = 0.3


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def redis_link(own_redis: RedisServer) -> Iterator[Link]:
    with link(own_redis.port) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, redis_link: Link) -> Iterator[GatewayProcess]:
    def spec(name: str, **fields: Any) -> dict[str, Any]:
        return {"name": f"wait-{name}", "backend": "vllm", "url": upstream.target(f"wait-{name}").url, **fields}

    due = f"{FIRST_BYTE * 1000:.0f}ms"
    routes: dict[str, Any] = {
        "queue": {"targets": [spec("queue", max_inflight=1)], "queue": {"wait": "30s"}},
        "retry": {"targets": [spec("first")], "fallback": [spec("second")]},
        "shadow": {"targets": [spec("primary")], "shadow": {"target": spec("copy"), "share": 1.0}},
        "late": {"targets": [spec("late")], "timeouts": {"first_output": due, "whole": due}},
        "good": {"targets": [spec("good")]},
        "cold": {"targets": [{**spec("cold"), "url": f"http://127.0.0.1:{free_port()}"}], "hold": "60s"},
    }
    with gateway_process(
        json.dumps({"routes": routes}),
        redis_url=f"redis://127.0.0.1:{redis_link.port}/0",
        env={"TRUNKLINE_REDIS_TIMEOUT": "3"},
    ) as started:
        yield started


@pytest.fixture
def targets(upstream: Upstream) -> dict[str, Target]:
    found = {name: upstream.target(f"wait-{name}") for name in NAMES}
    for target in found.values():
        target.restore()
    return found


@pytest.fixture(scope="module")
def issued(gateway: GatewayProcess) -> Issued:
    return gateway.issue(limit=LIMIT)


def queued(gateway: GatewayProcess, calls: int) -> None:
    """Return when so many calls wait for a target."""
    eventually(lambda: total(samples(gateway), "queue_calls", route="queue") == calls or None, f"{calls} wait")


@pytest.mark.parametrize("way", WAYS)
def test_a_place_in_the_queue_is_left_at_once(
    gateway: GatewayProcess, own_redis: RedisServer, targets: dict[str, Target], issued: Issued, way: str
) -> None:
    targets["queue"].script, counted = [Act.STALL], Counted(gateway, "queue")
    with wire(gateway, request(chat("queue"), issued.secret)) as ahead:
        received, alone = targets["queue"].wait_for_calls(), held(gateway, own_redis)
        behind = [Wire(gateway.port) for _ in range(TRIES)]
        for opened in behind:
            opened.send(request(chat("queue", stream=True), issued.secret))
        queued(gateway, TRIES)
        for opened in behind:
            WAYS[way](opened)
        eventually(lambda: held(gateway, own_redis) == alone or None, "only the call ahead holds anything", UNEXPIRED)
        assert len(targets["queue"].calls) == 1
        counted(queue=TRIES)
        in_time([leave(Wire.leave, ahead, received)])
    counted(queue=TRIES, whole=1)
    nothing_left(gateway, own_redis)
    lines = [line for line in gateway.records() if line.get("abort", {}).get("phase") == "queue"]
    in_time([line["abort"]["seconds"] for line in lines])
    assert all(line["attempts"] == [] and "usage" not in line for line in lines)


@pytest.mark.parametrize("way", WAYS)
def test_a_target_that_has_yet_to_start_is_waited_for_by_nobody_who_left(
    gateway: GatewayProcess, own_redis: RedisServer, issued: Issued, way: str
) -> None:
    counted = Counted(gateway, "cold")
    with wire(gateway, request(chat("cold"), issued.secret)) as opened:
        eventually(lambda: held(gateway, own_redis)["on hold"] or None, "it waits for the target")
        WAYS[way](opened)
        counted(queue=1)
        nothing_left(gateway, own_redis)


@pytest.mark.parametrize("way", ["close", "reset"])
def test_the_second_target_knows_too(
    gateway: GatewayProcess, own_redis: RedisServer, targets: dict[str, Target], issued: Issued, way: str
) -> None:
    counted, took = Counted(gateway, "retry"), []
    targets["second"].script = stream(Act.STALL)
    for number in range(1, 4):
        targets["first"].scripts = [whole({}, 500)]
        with wire(gateway, request(chat("retry", stream=True), issued.secret)) as opened:
            received = targets["second"].wait_for_calls(number)
            passed_through(gateway, issued.secret)
            took.append(leave(WAYS[way], opened, received))
        line = record(gateway, received.header("x-request-id"))
        assert [each["target"] for each in line["attempts"]] == ["wait-first", "wait-second"]
        assert line["attempts"][1]["outcome"] == "caller_gone"
    in_time(took)
    counted(first_token=3)
    nothing_left(gateway, own_redis)
    assert ask(gateway, chat("retry"), issued.secret).header("x-trunkline-target") == "wait-first"


def test_a_call_that_was_left_is_not_copied_and_a_copy_is_no_business_of_its_client(
    gateway: GatewayProcess, own_redis: RedisServer, targets: dict[str, Target], issued: Issued
) -> None:
    counted = Counted(gateway, "shadow")
    targets["primary"].script = stream(event("Hi"), Act.STALL)
    with wire(gateway, request(chat("shadow", stream=True), issued.secret)) as opened:
        opened.read_until(b'"Hi"')
        leave(Wire.leave, opened, targets["primary"].calls[-1])
    counted(stream=1)
    targets["primary"].restore()
    targets["copy"].script = stream(event("Hi"), Act.STALL)
    with wire(gateway, request(chat("shadow", stream=True), issued.secret)) as opened:
        opened.read_until(b"[DONE]")
        copy = targets["copy"].wait_for_calls()
    passed_through(gateway, issued.secret)
    assert len(targets["copy"].calls) == 1 and not copy.closed.is_set()
    counted(stream=1)
    nothing_left(gateway, own_redis)


def scripts(redis: RedisServer) -> int:
    """How many have run there."""
    stats = redis.ask("INFO", "commandstats")
    return sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_fcall") if name in stats)


@pytest.mark.parametrize("spoiled", ["lost", "late"])
def test_a_client_need_not_wait_for_redis_to_leave(
    gateway: GatewayProcess,
    own_redis: RedisServer,
    redis_link: Link,
    targets: dict[str, Target],
    issued: Issued,
    spoiled: str,
) -> None:
    """A slot that is granted to nobody, because its client did not wait for it, is given back."""
    # The key is known, and Redis is there again.
    eventually(lambda: ask(gateway, chat("good"), issued.secret).status == 200 or None, "limits can be checked")
    calls = len(targets["good"].calls)
    counted = Counted(gateway, "good")
    before = scripts(own_redis)
    redis_link.black_hole() if spoiled == "lost" else redis_link.delay(1)
    try:
        with wire(gateway, request(chat("good"), issued.secret)) as opened:
            eventually(lambda: "trunkline_in_flight 1.0" in gateway.metrics() or None, "it waits for its admission")
            opened.leave()
            eventually(lambda: "trunkline_in_flight 0.0" in gateway.metrics() or None, "it has ended")
        counted.one_of("queue", "body")  # a key that was last looked at a second ago is looked at first
        if spoiled == "late":
            # A slow machine looks for the slot when another script has given it back already.
            slots = lambda: held(gateway, own_redis)["slots"] or scripts(own_redis) >= before + 2 or None  # noqa: E731
            eventually(slots, "the slot was granted")
    finally:
        redis_link.restore()
    nothing_left(gateway, own_redis)
    assert len(targets["good"].calls) == calls

    def shared() -> bool | None:
        return ask(gateway, chat("good"), issued.secret).header("x-trunkline-degraded") is None or None

    eventually(shared, "limits are shared again")
    nothing_left(gateway, own_redis)


def test_a_client_that_leaves_just_when_its_time_is_over_is_counted_once(
    gateway: GatewayProcess, own_redis: RedisServer, targets: dict[str, Target], issued: Issued
) -> None:
    """Both cancel the call; whichever comes second finds it unwinding."""
    targets["late"].script, before = [Act.STALL], len(gateway.records())
    for number in range(TRIES):
        opened = [Wire(gateway.port) for _ in range(4)]
        for each in opened:
            each.send(request(chat("late"), issued.secret))
        targets["late"].wait_for_calls(4 * (number + 1))
        opened[0].answer()  # one is late: the others are about to be
        for each in opened[1:]:
            each.leave()
    nothing_left(gateway, own_redis)
    eventually(lambda: len(gateway.records()) == before + 4 * TRIES or None, "all are recorded")
    outcomes = {(line["outcome"], line["status"]) for line in gateway.records()[before:]}
    assert outcomes <= {("gone", 499), ("failed", 504)}
    assert "a bug of ours" not in gateway.stderr() and "Traceback" not in gateway.stderr()
