"""Without the store: each limit does what was said for it, what was spent is owed, and all heals by itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from unit.gateway.limits.bench import Bench, call, header

from backends.api import Call
from gateway.config.limits import Price
from gateway.core.errors import LimitsUnavailable, OutOfBudget, RateLimited
from gateway.core.types import Allowance, Budget, Limit, Spent
from gateway.limits import Rules

LIMITS: dict[str, dict[str, Any]] = {
    "rpm": {"rpm": 6},
    "tpm": {"tpm": 720},
    "itpm": {"itpm": 240},
    "otpm": {"otpm": 480},
    "concurrency": {"concurrency": 6},
    "budget": {"budget": Budget(day=Allowance(tokens=720))},
}
"""Each lets in six calls at once."""


def sixth() -> Call:
    """A call that takes a sixth of each of `LIMITS`: 40 prompt tokens and 80 more."""
    short = call(max_tokens=80, user="")
    return call(max_tokens=80, user="x" * (160 - len(short.body.raw)))


def limit(name: str, policy: str | None = None) -> Limit:
    return Limit(**LIMITS[name], outage={} if policy is None else {name: policy})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", sorted(LIMITS))
async def test_six_calls_fill_each_limit(bench: Bench, name: str) -> None:
    assert await bench.granted(await bench.person(limit(name)), 9, sixth()) == 6


@pytest.mark.parametrize("name", sorted(LIMITS))
@pytest.mark.parametrize(("gateways", "share"), [(1, 6), (2, 3), (3, 2), (6, 1)])
async def test_a_share_is_the_limit_divided_by_the_living_gateways(
    tmp_path: Path, name: str, gateways: int, share: int
) -> None:
    bench = Bench(tmp_path)
    bench.store.gateways = gateways
    person = await bench.person(limit(name, "share"))
    bench.limits.down = True
    assert await bench.granted(person, 20, sixth()) == share


async def test_a_gateway_that_heard_of_nobody_counts_its_own_workers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gateways=3)
    person = await bench.person(limit("rpm"))
    bench.limits.down = True
    assert await bench.granted(person, 20) == 2


async def test_a_share_is_never_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store.gateways = 50
    person = await bench.person(Limit(rpm=6, tpm=600, concurrency=2))
    bench.limits.down = True
    assert await bench.granted(person, 20, call(max_tokens=200)) == 1


@pytest.mark.parametrize("name", sorted(LIMITS))
async def test_a_closed_limit_lets_nothing_in(bench: Bench, name: str) -> None:
    person = await bench.person(limit(name, "closed"))
    bench.limits.down = True
    for _ in range(3):
        with pytest.raises(LimitsUnavailable) as caught:
            await bench.admit(person, sixth())
        assert caught.value.status == 503 and caught.value.retry_after
        assert name in caught.value.message and "key" in caught.value.message
    bench.limits.down = False
    await bench.admit(person, sixth())


@pytest.mark.parametrize("name", sorted(LIMITS))
async def test_an_open_limit_lets_everything_in(bench: Bench, name: str) -> None:
    person = await bench.person(limit(name, "open"))
    bench.limits.down = True
    assert await bench.granted(person, 100, sixth()) == 100


async def test_budgets_are_closed_unless_they_say_otherwise(bench: Bench) -> None:
    person = await bench.person(limit("budget"))
    bench.limits.down = True
    with pytest.raises(LimitsUnavailable):
        await bench.admit(person, sixth())


@pytest.mark.parametrize("name", ["rpm", "tpm", "itpm", "otpm", "concurrency"])
async def test_all_else_is_shared_unless_it_says_otherwise(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, gateways=2)
    person = await bench.person(limit(name))
    bench.limits.down = True
    assert await bench.granted(person, 20, sixth()) == 3


async def test_each_limit_follows_its_own_policy(tmp_path: Path) -> None:
    """One closed limit among open ones closes, whoever's it is."""
    both = Limit(rpm=2, concurrency=100, outage={"rpm": "share", "concurrency": "open"})
    closed = Limit(tpm=100_000, outage={"tpm": "closed"})
    bench = Bench(tmp_path, Rules(models={"shut": closed}))
    person = await bench.person(both)
    bench.limits.down = True
    assert await bench.granted(person, 9) == 2
    with pytest.raises(LimitsUnavailable, match="model tpm"):
        await bench.admit(person, route="shut")


async def test_an_outage_is_told_once_and_so_is_its_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    person = await bench.person(Limit(rpm=100))
    with caplog.at_level(logging.INFO, "trunkline.limits"):
        for _ in range(3):
            bench.limits.down = True
            for _ in range(4):
                await bench.admit(person)
            assert bench.admission.degraded
            bench.limits.down = False
            for _ in range(4):
                await bench.admit(person)
            assert not bench.admission.degraded
    assert bench.told == [True, False] * 3
    assert len(caplog.records) == 6


async def test_answers_of_an_outage_say_so(bench: Bench) -> None:
    person = await bench.person(Limit(rpm=1))
    bench.limits.down = True
    assert header(await bench.admit(person), "x-trunkline-degraded") == "limits-local"
    error = await bench.refused(person)
    assert error.headers["x-trunkline-degraded"] == "limits-local"
    assert error.headers["x-ratelimit-limit-requests"] == "1"
    assert bench.denied == [("key", "rpm")]
    bench.limits.down = False
    assert header(await bench.admit(person), "x-trunkline-degraded") is None


async def test_a_caller_without_limits_does_not_notice(bench: Bench) -> None:
    person = await bench.person()
    bench.limits.down = True
    assert (await bench.admit(person)).headers == []
    assert not bench.admission.degraded


async def test_slots_of_before_count_and_go_back_to_where_they_came_from(bench: Bench) -> None:
    person = await bench.person(Limit(concurrency=2))
    shared = await bench.admit(person)
    bench.limits.down = True
    own = await bench.admit(person)
    await refused(bench, person)
    async with own:
        pass
    async with await bench.admit(person):
        await refused(bench, person)
        async with shared:
            pass
        async with await bench.admit(person):
            await refused(bench, person)
    bench.limits.down = False
    assert await bench.granted(person, 5) == 2, "the store knows that all have ended"


async def refused(bench: Bench, person: Any) -> None:
    assert isinstance(await bench.refused(person), RateLimited)


async def test_a_call_let_in_without_the_store_takes_no_slot_there(bench: Bench) -> None:
    person = await bench.person(Limit(concurrency=1))
    bench.limits.down = True
    own = await bench.admit(person)
    bench.limits.down = False
    async with own, await bench.admit(person):
        await refused(bench, person)
    async with await bench.admit(person):
        pass
    assert [len(ask.plan.dimensions) for ask, _, _ in bench.limits.owed] == []


async def test_a_call_that_outlives_its_outage_does_not_spoil_the_next_one(bench: Bench) -> None:
    person = await bench.person(Limit(concurrency=1))
    bench.limits.down = True
    old = await bench.admit(person)
    bench.limits.down = False
    async with await bench.admit(person):
        pass
    bench.limits.down = True
    new = await bench.admit(person)
    async with old:
        pass
    await refused(bench, person)
    async with new:
        pass
    assert await bench.granted(person, 3) == 1


@pytest.mark.parametrize("policy", ["share", "open"])
async def test_what_was_spent_of_budgets_is_owed_to_the_store(tmp_path: Path, policy: Any) -> None:
    """Whole, once, of the budgets only: what rates took has leaked away when the store is back."""
    budget = Budget(day=Allowance(tokens=1000), month=Allowance(cost_micros=90_000))
    mixed = Limit(rpm=10, tpm=10_000, concurrency=3, budget=budget, outage={"budget": policy})
    price = Price(input=1_000_000, output=1_000_000)
    bench = Bench(tmp_path, Rules(models={"r": mixed}), prices={"r": price})
    person = await bench.person(mixed)
    bench.limits.down = True
    lease = await bench.admit(person, spent=Spent(input=30, output=12, cost=77))
    async with lease:
        await lease.end()
    ((ask, at, used),) = bench.limits.owed
    assert [(d.scope, d.name, d.unit, d.period) for d in ask.plan.dimensions] == [
        ("key", "budget", "tokens", "day"),
        ("key", "budget", "cost", "month"),
        ("model", "budget", "tokens", "day"),
        ("model", "budget", "cost", "month"),
    ]
    assert list(used) == [42, 77, 42, 77]
    assert [*ask.amounts] == [0] * 4, "nothing was reserved there"
    assert at == lease.at * 1e6
    assert bench.limits.settled == []


@pytest.mark.parametrize("spent", [Spent(), Spent(input=30, output=12)])
async def test_what_was_not_spent_is_not_owed(bench: Bench, spent: Spent) -> None:
    budget = Budget(day=Allowance(cost_micros=90_000)) if spent.input else Budget(day=Allowance(tokens=900))
    person = await bench.person(Limit(rpm=5, budget=budget, outage={"budget": "share"}))
    bench.limits.down = True
    await bench.done(person, spent=spent)
    assert bench.limits.owed == []


async def test_a_share_of_a_budget_is_spent_by_what_calls_really_took(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gateways=2)
    person = await bench.person(Limit(budget=Budget(day=Allowance(tokens=400)), outage={"budget": "share"}))
    bench.limits.down = True
    for _ in range(4):
        await bench.done(person, call(max_tokens=30), spent=Spent(input=20, output=20))
    error = await bench.refused(person, call(max_tokens=30))
    assert isinstance(error, OutOfBudget)


async def test_rates_of_an_outage_refill_as_always(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gateways=2)
    person = await bench.person(Limit(rpm=12))
    bench.limits.down = True
    assert await bench.granted(person, 20) == 6
    bench.clock.advance(30)
    assert await bench.granted(person, 20) == 3


async def test_what_is_too_large_for_a_share_is_let_in_all_the_same(tmp_path: Path) -> None:
    """It fits the limit: that many gateways live is no reason to refuse it until the store is back."""
    bench = Bench(tmp_path, gateways=10)
    person = await bench.person(Limit(tpm=1000))
    bench.limits.down = True
    await bench.admit(person, call(max_tokens=900))
    await refused(bench, person)
