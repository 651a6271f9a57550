"""The algorithm in Python and the one in admit.lua are the same, on one clock that the test sets."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator

import pytest
from harness.clock import FixedClock
from harness.redis_server import RedisServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from gateway.core.types import Ask, Dimension
from gateway.store.memory import MemoryStore
from gateway.store.redis import ADMIT

MICRO = 1_000_000
BASE = 1_800_000_000
CLOCK = b"redis.call('TIME')"

Pair = tuple[tuple[int, float], tuple[int, float]]
STEPS = st.lists(
    st.tuples(st.integers(0, 40 * MICRO), st.lists(st.integers(1, 5), min_size=2, max_size=2)), min_size=1, max_size=15
)
LIMITS = st.tuples(
    st.integers(1, 12) | st.sampled_from([59, 60, 61, 600, 9_999, 200_000]), st.sampled_from([0.25, 1.0, 60.0, 3600.0])
)


class Lua:
    """admit.lua with the time in a Redis key instead of the server's."""

    def __init__(self, client: Redis) -> None:
        assert ADMIT.text.count(CLOCK) == 1
        self._client = client
        self._text = ADMIT.text.replace(CLOCK, b"{0, redis.call('GET', '{tl}:test:now')}")

    def admit(self, ask: Ask, now: int) -> list[int]:
        self._client.set("{tl}:test:now", now)
        arguments: list[str | int] = [ask.call_id, ask.key_version]
        for dimension in ask.dimensions:
            arguments += (dimension.kind, dimension.limit, int(dimension.window * MICRO), dimension.amount)
        keys = ["{tl}:key:" + ask.key_id, *("{tl}:" + dimension.key for dimension in ask.dimensions)]
        answer: list[int] = self._client.eval(self._text, len(keys), *keys, *arguments)  # type: ignore[assignment]
        return answer


@pytest.fixture(scope="module")
def client(redis: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis.url) as client:
        yield client


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, limits=st.tuples(LIMITS, LIMITS))
def test_redis_and_memory_decide_alike(
    client: Redis, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[int]]], limits: Pair
) -> None:
    lua, clock = Lua(client), FixedClock(BASE)
    memory = MemoryStore(tmp_path_factory.getbasetemp() / "none.json", clock.now)
    key_id = uuid.uuid4().hex
    client.hset("{tl}:key:" + key_id, "version", 1)
    now = BASE * MICRO
    for passed, amounts in steps:
        now += passed - passed % 2**10  # floats of the clock hold these microseconds exactly enough
        clock.time = now / MICRO
        dimensions = tuple(
            Dimension(name, "rate", f"rate:{key_id}:{name}", limit, window, min(amount, limit))
            for name, (limit, window), amount in zip(("a", "b"), limits, amounts, strict=True)
        )
        ask = Ask(uuid.uuid4().hex, key_id, 1, dimensions)
        status, denied, wait, *standings = lua.admit(ask, int(clock.now() * MICRO))
        verdict = memory.charge(ask)
        assert verdict.denied == (None if status == 0 else denied - 1)
        assert round(verdict.retry_after * MICRO) == wait
        assert [standing.remaining for standing in verdict.standings] == standings[0::2]
        assert [round(standing.reset * MICRO) for standing in verdict.standings] == standings[1::2]


def test_a_clock_that_went_back_does_not_lock_a_key(client: Redis) -> None:
    lua, key_id = Lua(client), uuid.uuid4().hex
    client.hset("{tl}:key:" + key_id, "version", 1)
    dimension = Dimension("rpm", "rate", f"rate:{key_id}", 1, 60.0)
    now = BASE * MICRO
    assert lua.admit(Ask("1", key_id, 1, (dimension,)), now)[0] == 0
    status, _, wait, *_ = lua.admit(Ask("2", key_id, 1, (dimension,)), now - 3600 * MICRO)
    assert status == 1 and wait <= 60 * MICRO


def test_counters_do_not_outlive_their_use(client: Redis) -> None:
    """Nothing of a key that is not used any more stays in Redis but its record."""
    lua, key_id = Lua(client), uuid.uuid4().hex
    client.hset("{tl}:key:" + key_id, "version", 1)
    rate = Dimension("rpm", "rate", f"rate:{key_id}", 60, 60.0)
    lease = Dimension("concurrency", "lease", f"lease:{key_id}", 4, 15.0)
    lua.admit(Ask("1", key_id, 1, (rate, lease)), BASE * MICRO)
    assert 0 < client.pttl("{tl}:" + rate.key) <= math.ceil(1000 * (60 / 60)) + 1000
    assert 15_000 <= client.pttl("{tl}:" + lease.key) <= 30_000
