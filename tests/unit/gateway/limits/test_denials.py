"""The last denial of a key is answered again without asking the store, and never where the store would say yes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from msgspec import structs
from unit.gateway.limits.bench import Bench, Held, Person, call

from backends.api import Call
from gateway.config.limits import Price
from gateway.core.errors import LimitReached, NeverFits, OutOfBudget, RateLimited
from gateway.core.types import Allowance, Budget, Limit, Spent, Tenant
from gateway.limits import Rules
from gateway.limits.denials import MAX_DENIALS, MOST_SECONDS, Denial, Denials

PRICES = {"r": Price(input=1, output=1)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, prices=PRICES)


def budget(**allowed: int) -> Limit:
    return Limit(budget=Budget(day=Allowance(**allowed)))


def again(bench: Bench, person: Person) -> LimitReached | None:
    """What the person is told before its body is read; None: it is to be read."""
    if person.key.id not in bench.admission.denials:
        return None
    try:
        bench.admission.deny_again(person)
    except LimitReached as error:
        return error
    return None


async def denied(bench: Bench, person: Person, asked: Call | None = None) -> LimitReached:
    """Call until that is denied."""
    while True:
        with suppress(LimitReached):
            await bench.admit(person, asked)
            continue
        return await bench.refused(person, asked)


async def test_a_rate_of_requests_is_answered_again_until_a_call_fits(bench: Bench) -> None:
    person = await bench.person(Limit(rpm=2, tpm=1000))
    assert again(bench, person) is None
    first = await denied(bench, person)
    asked = len(bench.limits.asked)
    told = again(bench, person)
    assert type(told) is RateLimited and (told.dimension, told.scope) == ("rpm", "key")
    assert (told.message, told.headers.keys()) == (first.message, first.headers.keys())
    bench.clock.advance(20)
    later = again(bench, person)
    assert later is not None and later.retry_after == pytest.approx(first.retry_after - 20)  # type: ignore[operator]
    assert "Try again in 10s" in later.message
    assert float(later.headers["x-ratelimit-reset-requests"].removesuffix("s")) < 60
    assert len(bench.limits.asked) == asked, "nobody was asked"
    assert bench.denied[-1] == ("key", "rpm")
    bench.clock.advance(10.001)
    assert again(bench, person) is None and not bench.admission.denials
    await bench.admit(person)


async def test_a_tenants_rate_counts_too_and_a_models_does_not(tmp_path: Path) -> None:
    rules = Rules(models={"r": Limit(rpm=1)}, key_models={"s": Limit(rpm=1)})
    bench = Bench(tmp_path, rules, prices=PRICES)
    of_tenant = await bench.person(id="k1", tenant=Limit(rpm=3))
    for route in ("r", "s"):
        await bench.admit(of_tenant, route=route)
        await bench.refused(of_tenant, route=route)
        assert again(bench, of_tenant) is None, "another model may do"
    await bench.admit(of_tenant, route="t")
    await bench.refused(of_tenant, route="t")
    told = again(bench, of_tenant)
    assert told is not None and told.scope == "tenant"


@pytest.mark.parametrize("limit", [Limit(tpm=1000), Limit(itpm=20), Limit(otpm=500), Limit(concurrency=1)])
async def test_what_may_be_given_back_is_asked_for_each_time(bench: Bench, limit: Limit) -> None:
    person = await bench.person(limit)
    await denied(bench, person, call(max_tokens=400))
    assert again(bench, person) is None


@pytest.mark.parametrize("allowed", [{"tokens": 500}, {"cost_micros": 500}], ids=str)
async def test_a_budget_that_is_spent_is_answered_again(bench: Bench, allowed: dict[str, int]) -> None:
    person = await bench.person(budget(**allowed))
    await bench.done(person, call(max_tokens=100), spent=Spent(400, 0, 100, 500))
    await bench.refused(person, call(max_tokens=1))
    told = again(bench, person)
    assert type(told) is OutOfBudget and "used up" in told.message
    bench.clock.advance(MOST_SECONDS)
    assert again(bench, person) is None, "the store may have forgotten by now"


@pytest.mark.parametrize("spent", [400, 0])
async def test_a_budget_of_which_something_is_left_or_only_reserved_is_not(bench: Bench, spent: int) -> None:
    person = await bench.person(budget(tokens=500))
    await bench.done(person, call(max_tokens=100), spent=Spent(spent, 0, 0, 0))
    held = await bench.admit(person, call(max_tokens=80 if spent else 480))
    await bench.refused(person, call(max_tokens=300))
    assert again(bench, person) is None
    async with held:
        pass


@pytest.mark.parametrize(
    "prices", [{}, {"r": None}, {"r": PRICES["r"], "free": None}, {"r": Price(input=0, output=1)}], ids=str
)
async def test_money_is_asked_for_where_some_call_may_be_free(tmp_path: Path, prices: dict[str, Price]) -> None:
    bench = Bench(tmp_path, prices={"p": Price(input=5, output=5)} | prices)
    person = await bench.person(budget(cost_micros=500))
    await bench.done(person, call(max_tokens=100), route="p", spent=Spent(400, 0, 100, 500))
    await bench.refused(person, call(max_tokens=1), route="p")
    assert (again(bench, person) is not None) is (not prices)


async def test_a_change_of_the_key_its_tenant_or_the_table_ends_it(bench: Bench) -> None:
    tenant = Tenant(id="t", created=1)
    await bench.store.records.put(tenant)
    for change in ("key", "tenant", "table"):
        person = Person((await bench.person(Limit(rpm=1), id=f"k-{change}")).key, tenant)
        await denied(bench, person)
        assert again(bench, person) is not None
        if change == "key":
            person = await bench.changed(person, Limit(rpm=5))
        elif change == "tenant":
            person = Person(person.key, structs.replace(tenant, version=2))
        else:
            bench.admission.revise(Rules(), PRICES)
        assert again(bench, person) is None and person.key.id not in bench.admission.denials


async def test_what_was_denied_under_the_table_before_is_not_kept(bench: Bench) -> None:
    """The store answers after the reload."""
    person = await bench.person(Limit(rpm=1))
    await bench.admit(person)
    inner, asked = bench.limits.inner.admit, asyncio.Event()

    async def late(ask: object) -> object:
        asked.set()
        await asyncio.sleep(0)
        return await inner(ask)

    bench.limits.inner.admit = late
    refusal = asyncio.create_task(bench.refused(person))
    await asked.wait()
    bench.admission.revise(Rules(), PRICES)
    await refusal
    assert not bench.admission.denials


async def test_what_this_gateway_decides_alone_is_not_kept(bench: Bench) -> None:
    person = await bench.person(Limit(rpm=2))
    await denied(bench, person)
    bench.limits.down = True
    other = await bench.person(Limit(rpm=1), id="other")
    await denied(bench, other)
    assert not bench.admission.denials, "shares are others, and what was known before has ended"


async def test_memory_is_bounded(bench: Bench) -> None:
    person = await bench.person(Limit(rpm=1))
    await denied(bench, person)
    (denial,) = bench.admission.denials.values()
    denials = Denials()
    for number in range(MAX_DENIALS + 10):
        denials.remember(f"k{number}", denial)
    denials.remember("k10", denial)
    assert len(denials) == MAX_DENIALS and next(iter(denials)) == "k11"
    assert isinstance(denial, Denial)


STEPS = ("call",) * 10 + ("end",) * 6 + ("pass",) * 4 + ("key", "tenant", "table")
PASSED = (0.0, 0.3, 5.0, 29.9, 31.0, 31.0, 600.0, 86_400.0)
TOKENS = (1, 60, 120)


@pytest.mark.parametrize("seed", range(8))
async def test_it_never_refuses_what_the_store_would_grant(bench: Bench, seed: int) -> None:
    chance = Random(seed)
    steps = [
        (
            step,
            chance.choice(PASSED)
            if step == "pass"
            else chance.choice(TOKENS)
            if step == "call"
            else chance.randint(0, 6),
        )
        for step in chance.choices(STEPS, k=300)
    ]
    assert await walk(bench, steps) > 5, "it was never put to the test"


async def walk(bench: Bench, steps: list[tuple[str, float]]) -> int:
    """Every time that a denial is answered again, the store is asked all the same: it must say no. How often."""
    times = 0
    limit = Limit(rpm=5, tpm=250, concurrency=3, budget=Budget(day=Allowance(tokens=300, cost_micros=900)))
    person = await bench.person(limit, tenant=Limit(rpm=4, budget=Budget(day=Allowance(tokens=500))))
    held: list[Held] = []
    for step, number in steps:
        if step == "pass":
            bench.clock.advance(number)
        elif step == "call":
            told = again(bench, person)
            times += told is not None
            with suppress(LimitReached, NeverFits):
                held.append(await bench.admit(person, call(max_tokens=int(number))))
                assert told is None, f"it was refused with {told}"
        elif step == "end" and held:
            used = Spent(int(number), 0, int(number) * 20, int(number) * 40)
            held.pop().lease.settle(used)
        elif step == "key":
            person = await bench.changed(person, structs.replace(limit, rpm=int(number) + 1))
        elif step == "tenant":
            assert person.tenant is not None
            tenant = structs.replace(person.tenant, version=person.tenant.version + 1, limit=Limit(rpm=int(number) + 1))
            await bench.store.records.put(tenant)
            person = Person(person.key, tenant)
        elif step == "table":
            bench.admission.revise(Rules(key=Limit(itpm=int(number) * 10 + 30)), PRICES)
    return times
