"""Load that gateways tell each other through Redis, and what becomes of it when one of them, or Redis, is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from faults.fleet import kill
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream
from integration.client import ask, eventually, samples, total
from integration.engine import Engine, engines, send, sent, served, table, talk, text

NAMES = ("load-a", "load-b")
HUGE = 60_000
"""Tokens: more than a target is assumed to read within the time of these tests' patience."""


@pytest.fixture
def fleet(upstream: Upstream) -> Iterator[list[Engine]]:
    made = engines(upstream, *NAMES)
    yield made
    for engine in made:
        engine.release()


@contextmanager
def pair(fleet: list[Engine], url: str) -> Iterator[list[GatewayProcess]]:
    """Two gateways on one Redis."""
    routes = {"m": {"targets": [engine.spec() for engine in fleet]}}
    with ExitStack() as stack:
        yield [stack.enter_context(gateway_process(table(routes), redis_url=url)) for _ in range(2)]


@contextmanager
def busy(gateway: GatewayProcess, fleet: list[Engine], key: str) -> Iterator[Engine]:
    """The target that has a huge prompt to read, which came through this gateway."""
    for engine in fleet:
        engine.holding = 1
    with sent(gateway, [talk("m", text(HUGE))], key):
        loaded = eventually(lambda: next((engine for engine in fleet if engine.running), None), "the call runs")
        for engine in fleet:
            engine.holding = 0
        yield loaded
        loaded.release()


def spread(gateway: GatewayProcess, key: str, label: str) -> dict[str, int]:
    """Where twelve new conversations go."""
    places = [served(gateway, talk("m", f"{label} {n}"), key) for n in range(12)]
    return {name: places.count(name) for name in NAMES}


def avoids(gateway: GatewayProcess, key: str, name: str) -> Callable[[], bool | None]:
    return lambda: spread(gateway, key, "Avoid?")[name] == 0 or None


def returns(gateway: GatewayProcess, key: str, name: str) -> Callable[[], bool | None]:
    return lambda: spread(gateway, key, "Return?")[name] > 0 or None


def test_what_one_gateway_loads_the_other_avoids_until_it_is_over(fleet: list[Engine], redis: RedisServer) -> None:
    with pair(fleet, redis.url) as (one, other):
        key = one.issue().secret
        assert min(spread(other, key, "Before").values()) > 0
        with busy(one, fleet, key) as loaded:
            eventually(avoids(other, key, loaded.name), "the other gateway avoids it")
            assert total(samples(one), "target_prefill_tokens", target=loaded.name) >= 0
            eventually(
                lambda: 0 <= total(samples(other), "load_view_age_seconds") < 5, "how old its view is, is shown", 5
            )
        eventually(returns(other, key, loaded.name), "it is used again")


def test_the_load_of_a_dead_gateway_is_forgotten(fleet: list[Engine], redis: RedisServer) -> None:
    with pair(fleet, redis.url) as (one, other):
        key = one.issue().secret
        with busy(one, fleet, key) as loaded:
            eventually(avoids(other, key, loaded.name), "the other gateway avoids it")
            kill(one)
            eventually(returns(other, key, loaded.name), "it is used again though nobody took the load back")


def test_without_redis_each_gateway_goes_by_its_own_load(fleet: list[Engine]) -> None:
    with redis_server() as own, pair(fleet, own.url) as (one, other):
        key = one.issue().secret
        for gateway in (one, other):
            served(gateway, talk("m", "Hello"), key)
        own.stop()
        with busy(one, fleet, key) as loaded:
            assert spread(one, key, "Own")[loaded.name] == 0
            assert min(spread(other, key, "Other's").values()) > 0, "nobody has told it"
        eventually(returns(one, key, loaded.name), "it is used again")
        own.restart()
        with busy(one, fleet, key) as loaded:
            eventually(avoids(other, key, loaded.name), "loads are told again")


def test_counters_are_back_at_nothing_after_every_kind_of_ending(fleet: list[Engine], redis: RedisServer) -> None:
    """Answers, errors, retries, clients that leave before and after the first token."""
    with pair(fleet, redis.url) as (one, other):
        key = one.issue().secret
        for engine in fleet:
            engine.holding = 1
        leaving = [
            send(gateway, talk("m", f"Leave {n}", stream=n % 2 > 0), key) for n in range(10) for gateway in (one, other)
        ]
        eventually(lambda: sum(engine.running for engine in fleet) == 20 or None, "all run")
        for each in leaving:
            each.leave()
        eventually(lambda: sum(engine.running for engine in fleet) == 0 or None, "all have left")
        fleet[0].release()
        fleet[1].release()
        fleet[0].script = [b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"]
        for n in range(4):
            assert ask(one, talk("m", f"Fail {n}"), key).status == 200
        for gateway in (one, other):

            def idle(gateway: GatewayProcess = gateway) -> bool | None:
                found = samples(gateway)
                return (
                    sum(total(found, f"target_{what}") for what in ("prefill_tokens", "running", "waiting")) == 0
                    or None
                )

            eventually(idle, "nothing is left on any target")
