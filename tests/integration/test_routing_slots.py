"""`max_inflight`: calls at once at a target, counted for all gateways together and measured at the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from faults.fleet import kill
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream, whole
from integration.client import ask, eventually
from integration.engine import Engine, send, sent, table, talk

MOST = 5


@pytest.fixture
def engine(upstream: Upstream) -> Iterator[Engine]:
    made = Engine(upstream, "slots")
    yield made
    made.release()


@contextmanager
def pair(engine: Engine, url: str, workers: int = 2) -> Iterator[list[GatewayProcess]]:
    routes = {"m": {"targets": [engine.spec(max_inflight=MOST)], "queue": {"wait": "25s"}}}
    both = [gateway_process(table(routes), redis_url=url, workers=workers) for _ in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as starters:
        started = list(starters.map(lambda each: each.__enter__(), both))
        for each in both:
            stack.push(each)
        yield started


def crowd(gateways: list[GatewayProcess], key: str, calls: int) -> Counter[int]:
    """How so many calls end, two dozen at a time."""

    def one(n: int) -> int:
        return ask(gateways[n % len(gateways)], talk("m", f"{n}", stream=n % 3 == 0), key).status

    with ThreadPoolExecutor(24) as callers:
        return Counter(callers.map(one, range(calls)))


def test_all_gateways_together_never_exceed_it(engine: Engine, redis: RedisServer) -> None:
    with pair(engine, redis.url) as gateways:
        key = gateways[0].issue().secret
        engine.work = 0.03
        assert crowd(gateways, key, 150) == {200: 150}
        assert engine.peak == MOST, "all slots were used, and no other"


def test_a_target_that_works_again_after_failures_is_queued_for(engine: Engine) -> None:
    """It is ejected, and the only one: calls go there all the same, as many at once as always; the others wait."""
    with gateway_process(table({"m": {"targets": [engine.spec(max_inflight=MOST)]}})) as gateway:
        key = gateway.issue().secret
        engine.script = whole({}, 500)
        for n in range(6):
            assert ask(gateway, talk("m", f"{n}"), key).status == 502, "one that fails gives its slot back, too"
        assert "is ejected" in gateway.stderr()
        engine.script, engine.work = None, 0.03
        assert crowd([gateway], key, 50) == {200: 50}
        assert engine.peak == MOST


def test_clients_that_leave_free_their_slots_at_once(engine: Engine, redis: RedisServer) -> None:
    with pair(engine, redis.url) as gateways:
        key = gateways[0].issue().secret
        for _ in range(4):
            engine.holding = 1
            with sent(gateways[0], [talk("m", "Leave") for _ in range(MOST)], key):
                eventually(lambda: engine.running == MOST or None, "all slots are taken")
                waiting = send(gateways[1], talk("m", "Wait"), key)
            eventually(lambda: engine.running == 1 or None, "who waited has one")
            engine.release()
            assert waiting.answer().status == 200
        assert engine.peak == MOST


def test_slots_of_a_dead_gateway_come_back(engine: Engine, redis: RedisServer) -> None:
    with pair(engine, redis.url, workers=1) as (one, other):
        key = one.issue().secret
        engine.holding = 1
        with sent(one, [talk("m", "Die") for _ in range(MOST)], key):
            eventually(lambda: engine.running == MOST or None, "all slots are taken")
            engine.holding = 0
            kill(one)
            waiting = send(other, talk("m", "Wait"), key)
            assert waiting.answer().status == 200, "within the 25 s that it may wait"


def test_without_redis_each_worker_keeps_to_its_share(engine: Engine) -> None:
    with redis_server() as own, pair(engine, own.url, workers=1) as gateways:
        key = gateways[0].issue().secret
        for gateway in gateways:
            assert ask(gateway, talk("m", "Hello"), key).status == 200
        eventually(lambda: "trunkline_gateways 2.0" in gateways[0].metrics() or None, "they know of each other")
        eventually(lambda: "trunkline_gateways 2.0" in gateways[1].metrics() or None, "they know of each other")
        own.stop()
        engine.work = 0.03
        assert crowd(gateways, key, 40) == {200: 40}
        assert 1 < engine.peak <= MOST
