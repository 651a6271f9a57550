"""The algorithm in Python and the one in the scripts are the same, with any limit, on one clock that the test sets."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.sequences import Lose, Run, Step, World, steps, worlds
from contract.subject import Subject, in_memory, in_redis
from harness.redis_server import RedisServer
from hypothesis import given, settings
from redis import Redis

from gateway.core.types import Verdict
from gateway.store import LEASE_SECONDS
from gateway.store.redis.counters import LEASE_KEY_MS

ODD = (1, 2, 7, 11, 59, 60, 61, 600, 9_999, 200_000)


@pytest.fixture(scope="module")
def client(redis: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis.url) as client:
        yield client


def test_redis_and_memory_decide_alike(redis: RedisServer) -> None:
    """Where a unit costs no whole microseconds too: both round the same way."""

    async def verdicts(world: World, done: list[Step]) -> list[list[Verdict]]:
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for store in (in_memory(Path(folder)), in_redis(redis)):
                async with store as subject:
                    made = Run(subject, world, compare=False)
                    await made.do(done)
                    found.append(made.verdicts)
        return found

    @settings(max_examples=60, deadline=None)
    @given(world=worlds(ODD, (0.25, 1.0, 60.0, 3600.0)), done=steps(300))
    def alike(world: World, done: list[Step]) -> None:
        memory, shared = asyncio.run(verdicts(world, [step for step in done if not isinstance(step, Lose)]))
        assert memory == shared

    alike()


async def test_a_clock_that_went_back_does_not_lock_a_key(clocked: Subject) -> None:
    await clocked.key()
    requests, tokens = clocked.rate(1), clocked.tokens(100, 100)
    await clocked.granted(requests, tokens)
    await clocked.sleep(-3600)
    assert (await clocked.admit(requests)).retry_after <= 60
    assert (await clocked.admit(tokens)).retry_after <= 10 * 60  # it may be a debt, which is bounded too


async def test_a_debt_is_bounded(clocked: Subject) -> None:
    """Whatever a target claims that a call has used, its key is not locked for longer than ten windows."""
    await clocked.key()
    tokens = clocked.tokens(100, 1)
    await clocked.settle(await clocked.granted(tokens), 10**12)
    assert 9 * 60 <= (await clocked.admit(tokens)).retry_after <= 10 * 60


async def test_counters_do_not_outlive_their_use(lost: Subject, client: Redis) -> None:
    """Nothing of a key that is not used any more stays in Redis but its record."""
    await lost.key()
    rate, lease, budget = lost.rate(60), lost.lease(4), lost.budget(10, 1, "month")
    await lost.granted(rate, lease, budget)
    assert 1000 < client.pttl("{tl}:" + rate.key) <= 60_000 + 1000
    assert LEASE_SECONDS * 1000 <= client.pttl("{tl}:" + lease.key) <= LEASE_KEY_MS
    days = 86_400_000
    for key in (budget.key, budget.key + ":open"):
        assert 31 * days <= client.pttl("{tl}:" + key) <= 62 * days
