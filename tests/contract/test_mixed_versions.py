"""A rolling upgrade: gateways that run the scripts of fbac326 beside ours, on one Redis, with one set of limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from contract.subject import Subject, in_redis
from contract.timed import timed
from contract.wanted import Wanted, changed, wanted
from harness.redis_server import RedisServer
from redis import Redis

from gateway.core.types import Ask
from gateway.store import LEASE_SECONDS
from gateway.store.redis import counters
from gateway.store.redis.connection import Script

TAG, MICRO = "{tl}:", 1_000_000
EARLIER = Path(__file__).parent / "earlier"
PERIOD = Path(counters.__file__).parent / "period.lua"
"""It has not changed since."""


class Given(NamedTuple):
    """What an earlier gateway was told."""

    granted: bool
    at: int
    remaining: list[int]


class Earlier:
    """An earlier gateway, as far as it writes to Redis, on the test's clock."""

    def __init__(self, client: Redis) -> None:
        texts = (PERIOD.read_bytes() + b"\n" + (EARLIER / f"{name}.lua").read_bytes() for name in ("admit", "settle"))
        self._admit, self._settle = (timed(Script(text)) for text in texts)
        self._client = client

    def admit(self, ask: Ask) -> Given:
        keys = [TAG + "dead", TAG + "complete", *(f"{TAG}version:{name}" for name, _ in ask.plan.records)]
        arguments: list[object] = [ask.call_id, len(ask.plan.records), int(LEASE_SECONDS * MICRO)]
        arguments += [version for _, version in ask.plan.records]
        for each in wanted(ask):
            keys.append(TAG + each.key)
            arguments += (*_kind(each), each.amount)
        answer: list[int] = self._client.eval(self._admit.text, len(keys), *keys, *arguments)  # type: ignore[assignment]
        assert answer[0] in (0, 1), answer
        return Given(answer[0] == 0, answer[3], answer[4::2])

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        keys, arguments = [f"{TAG}settled:{ask.call_id}"], [ask.call_id, at]
        for each, units in zip(wanted(ask), used, strict=True):
            keys.append(TAG + each.key)
            arguments += (*_kind(each), each.amount, units)  # type: ignore[arg-type]
        assert self._client.eval(self._settle.text, len(keys), *keys, *arguments) == 1  # type: ignore[arg-type]


def _kind(dimension: Wanted) -> tuple[str, int, int | str]:
    if dimension.kind == "budget":
        assert dimension.period is not None
        return "budget", dimension.limit, dimension.period
    kind = "debt" if dimension.kind == "rate" and dimension.unit != "requests" else dimension.kind
    return kind, dimension.limit, int(dimension.window * MICRO)


@pytest.fixture
def earlier(redis: RedisServer) -> Iterator[Earlier]:
    with Redis.from_url(redis.url) as client:
        yield Earlier(client)


@pytest.fixture
async def ours(redis: RedisServer) -> AsyncIterator[Subject]:
    async with in_redis(redis) as subject:
        await subject.key()
        await subject.left(subject.budget(1, 0, "week"))  # from here on budgets are known to be complete
        yield subject


def every(ours: Subject) -> dict[str, Wanted]:
    """Of each kind one that has room for 21 of these."""
    return {
        "rpm": ours.rate(21, 3600.0),
        "tpm": ours.tokens(210, 10, 3600.0),
        "lease": ours.lease(21),
        "budget": ours.budget(210, 10, "month"),
    }


@pytest.mark.parametrize("kinds", ["rpm", "tpm", "lease", "budget", "lease budget tpm rpm"])
@pytest.mark.parametrize("first", [0, 1])
async def test_together_they_admit_exactly_the_limit(ours: Subject, earlier: Earlier, kinds: str, first: int) -> None:
    dimensions = [every(ours)[kind] for kind in kinds.split()]
    left = []
    while len(left) < 30:
        ask = ours.ask(*dimensions)
        if (len(left) + first) % 2:
            given = earlier.admit(ask)
            granted, remaining = given.granted, given.remaining
        else:
            verdict = await ours.store.limits.admit(ask)
            granted, remaining = verdict.denied is None, [standing.remaining for standing in verdict.standings]
        if not granted:
            break
        left.append(remaining)
    assert left == [[each.limit - each.amount * n for each in dimensions] for n in range(1, 22)]
    assert not earlier.admit(ours.ask(*dimensions)).granted
    assert (await ours.admit(*dimensions)).denied is not None


async def test_what_either_settles_both_know(ours: Subject, earlier: Earlier) -> None:
    dimensions = every(ours)
    rest = {"rpm": 21, "tpm": 210, "lease": 21, "budget": 210}
    for used in (0, 10, 4, 25):
        ask = ours.ask(*dimensions.values())
        given = earlier.admit(ask)
        assert given.granted
        earlier.settle(ask, given.at, (1, used, 1, used))
        await ours.settle(await ours.granted(*dimensions.values()), 1, used, 1, used)
        rest = {"rpm": rest["rpm"] - 2, "tpm": rest["tpm"] - 2 * used, "lease": 21, "budget": rest["budget"] - 2 * used}
        for kind, dimension in dimensions.items():
            assert await ours.left(dimension) == rest[kind]
        probe = earlier.admit(ours.ask(*(changed(each, amount=0) for each in dimensions.values())))
        assert [probe.remaining[0], probe.remaining[1], probe.remaining[3]] == [
            rest["rpm"],
            rest["tpm"],
            rest["budget"],
        ]
        dimensions["lease"] = ours.lease(21, str(used))  # the probe holds a slot of the one before


@pytest.mark.parametrize("order", [(True, False), (False, True)])
@pytest.mark.parametrize("asking", [True, False])
async def test_what_a_dead_worker_held_comes_back_to_either(
    ours: Subject, earlier: Earlier, order: tuple[bool, bool], asking: bool
) -> None:
    """Slots and reservations of either expire for both, to the moment."""
    dimensions = (ours.lease(2), ours.budget(20, 10))

    async def lets_in(new: bool) -> bool:
        ask = ours.ask(*dimensions)
        return (await ours.store.limits.admit(ask)).denied is None if new else earlier.admit(ask).granted

    for new in order:
        assert await lets_in(new)
        await ours.sleep(1)
    await ours.sleep(LEASE_SECONDS - 2 - 1 / 64)
    assert not await lets_in(True) and not await lets_in(False)
    await ours.sleep(1 / 64)
    assert [await lets_in(asking), await lets_in(not asking)] == [True, False]
