"""Whatever happens in whatever order, the stores decide as the definitions do, and no limit is ever passed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from contract.model import MICRO, Model
from contract.sequences import Again, End, Run, Step, World, bursts, overflow, spent, steps, worlds
from contract.subject import Subject, in_memory, in_redis
from contract.wanted import Wanted, asking
from harness.redis_server import RedisServer
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.types import Verdict

ANY = (1, 2, 3, 7, 11, 13, 59, 61, 97, 600, 9_999)
MANY = {"memory": settings(max_examples=200, deadline=None), "redis": settings(max_examples=60, deadline=None)}


def opened(name: str, server: RedisServer, folder: Path) -> AbstractAsyncContextManager[Subject]:
    return in_memory(folder) if name == "memory" else in_redis(server)


def run(name: str, server: RedisServer, world: World, done: Sequence[Step], *, compare: bool = True) -> Run:
    """What became of these steps in a new store."""

    async def live() -> Run:
        with tempfile.TemporaryDirectory() as folder:
            async with opened(name, server, Path(folder)) as subject:
                made = Run(subject, world, compare=compare)
                await made.do(done)
                return made

    return asyncio.run(live())


@pytest.mark.parametrize("name", MANY)
def test_a_store_decides_as_the_model_does(name: str, redis: RedisServer) -> None:
    """Verdict by verdict, with calls that use up to twice what they reserved, repeated settlements, lost workers."""

    @MANY[name]
    @given(world=worlds(), done=steps(200))
    def agrees(world: World, done: list[Step]) -> None:
        run(name, redis, world, done)

    agrees()


@pytest.mark.parametrize("name", MANY)
def test_no_limit_is_ever_passed_by_calls_that_use_what_they_reserved_or_less(name: str, redis: RedisServer) -> None:
    """Over any stretch of time: at most one burst and the rate. In any period: at most the budget. With any limit."""

    @MANY[name]
    @given(world=worlds(ANY, (60.0, 1.5, 0.25, 3600.0)), done=steps(100))
    def holds(world: World, done: list[Step]) -> None:
        made = run(name, redis, world, done, compare=False)
        lives = [*made.alive, *made.ended, *made.lost]
        for dimension in made.dimensions:
            if dimension.kind == "rate":
                found = bursts(lives, dimension.key)
                assert overflow(found, dimension.limit, dimension.window) <= 1e-6
            elif dimension.kind == "budget":
                assert all(units <= dimension.limit for units in spent(lives, dimension.key).values())

    holds()


@settings(max_examples=100, deadline=None)
@given(world=worlds(), done=steps(300), part=st.integers(0, 300))
def test_settling_everything_twice_is_settling_it_once(world: World, done: list[Step], part: int) -> None:
    """The same life with every settlement repeated at once, with other numbers, ends in the same state."""
    once: list[Step] = [step for step in done if not isinstance(step, Again)]
    twice: list[Step] = []
    for step in once:
        twice.append(step)
        if isinstance(step, End):
            twice += [Again(which, part) for which in range(10)]

    async def verdicts(steps: list[Step]) -> list[Verdict]:
        with tempfile.TemporaryDirectory() as folder:
            async with in_memory(Path(folder)) as subject:
                made = Run(subject, world)
                await made.do(steps)
                return made.verdicts

    assert asyncio.run(verdicts(once)) == asyncio.run(verdicts(twice))


TPM = Wanted("tpm", "rate", "rate:key:naive:tpm", 1000, 60.0, "key", "tokens", amount=1000)
START = 1_800_000_000 * MICRO


def life(model: Model, idle: int) -> list[tuple[int, int]]:
    """When calls were let in and what they used: some that used nothing, a window after one another, are all settled
    in one moment at the end, and others take what is free then."""
    now, waiting, found = START, [], []
    for number in range(idle):
        ask = asking(f"idle-{number}", (), TPM)
        assert model.admit(ask, now).granted
        waiting.append((ask, now))
        found.append((now, 0))
        now += 60 * MICRO
    for ask, at in [(asking("nobody", (), TPM), now), *waiting]:
        model.settle(ask, at, (0,), now)
        while model.admit(asking(f"real-{len(found)}", (), TPM), now).granted:
            found.append((now, TPM.amount))
    return found


@pytest.mark.parametrize("idle", [1, 2, 5])
def test_a_naive_refund_admits_what_time_has_given_already(idle: int) -> None:
    """The difference that the cap makes: without it the very same calls get twice the limit at once, or more, and the
    invariant of these tests sees it."""
    capped, naive = life(Model(15 * MICRO), idle), life(Model(15 * MICRO, naive=True), idle)
    assert sum(units for _, units in capped) == 1000
    assert sum(units for _, units in naive) == 1000 * (idle + 1)
    assert overflow(capped, TPM.limit, TPM.window) <= 0
    assert overflow(naive, TPM.limit, TPM.window) == 1000 * idle


@pytest.mark.parametrize("idle", [1, 2, 5])
async def test_no_store_admits_what_time_has_given_already(clocked: Subject, idle: int) -> None:
    await clocked.key()
    tokens = clocked.tokens(1000, 1000)
    waiting = []
    for _ in range(idle):
        waiting.append(await clocked.granted(tokens))
        await clocked.sleep(60)
    total = await clocked.grants(tokens, times=2)
    for call in waiting:
        await clocked.settle(call, 0)
        total += await clocked.grants(tokens, times=2)
    assert total == 1
