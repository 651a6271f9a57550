"""Admission: what is asked of the store, what the end of a call tells it, and what a denial says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness.virtual_time import settle
from msgspec import structs
from unit.gateway.limits.bench import Bench, Person, call, header, tokens_left

from backends.api import Call
from gateway.config.limits import Price
from gateway.core.errors import NeverFits, OutOfBudget, RateLimited, Unauthenticated
from gateway.core.types import Allowance, Budget, Limit, Spent
from gateway.limits import Rules
from gateway.limits.admission import MAX_STALE

PRICE = Price(input=1_000_000, cached=100_000, output=10_000_000)
"""A micro-unit for a prompt token, a tenth for a cached one, ten for one of the answer."""


def day(**allowed: int) -> Limit:
    return Limit(budget=Budget(day=Allowance(**allowed)))


def limited(scope: str, limit: Limit) -> dict[str, Any]:
    """Where a limit of this scope stands: in the table (`rules`), or at the key (`fields`)."""
    if scope == "key":
        return {"rules": Rules(key=limit)}
    if scope == "tenant":
        return {"rules": Rules(tenant=limit)}
    return {"rules": Rules(models={"r": limit})} if scope == "model" else {"fields": {"model_limits": {"r": limit}}}


async def test_the_keys_own_limits_go_before_the_tables(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Rules(key=Limit(rpm=100, concurrency=50)))
    assert await bench.granted(await bench.person(Limit(rpm=2)), 5) == 2


async def test_a_caller_without_limits_is_let_in_without_asking_the_store(bench: Bench) -> None:
    person = await bench.person()
    for _ in range(50):
        lease = await bench.done(person)
        assert lease.headers == []
    assert bench.limits.asked == [] and bench.limits.settled == []
    assert lease.at == bench.clock.now()
    assert lease.lease.input == len(call().body.raw) // 4


@pytest.mark.parametrize("scope", ["key", "tenant", "model", "key_model"])
@pytest.mark.parametrize(
    ("limit", "name"),
    [
        (Limit(rpm=1), "rpm"),
        (Limit(tpm=20), "tpm"),
        (Limit(itpm=20), "itpm"),
        (Limit(otpm=20), "otpm"),
        (Limit(concurrency=1), "concurrency"),
        (day(tokens=20), "budget"),
        (day(cost_micros=60), "budget"),
    ],
)
async def test_each_dimension_of_each_scope_denies(tmp_path: Path, scope: str, limit: Limit, name: str) -> None:
    where = limited(scope, limit)
    bench = Bench(tmp_path, where.get("rules"), prices={"r": PRICE})
    person = await bench.person(**where.get("fields", {}))
    await bench.admit(person)
    error = await bench.refused(person)
    assert (error.scope, error.dimension) == (scope, name)
    assert bench.denied == [(scope, name)]
    if scope in ("model", "key_model"):
        await bench.admit(person, route="q")
    if scope != "key":
        return
    await bench.admit(await bench.person(id="other"))


async def test_what_one_dimension_denies_charges_no_other(bench: Bench) -> None:
    person = await bench.person(structs.replace(day(tokens=1000), rpm=10, tpm=1000, concurrency=1))
    first = await bench.admit(person, call(max_tokens=10))
    for _ in range(20):
        assert (await bench.refused(person)).dimension == "concurrency"
    async with first:
        pass
    again = await bench.admit(person, call(max_tokens=10), spent=Spent())
    assert header(again, "x-ratelimit-remaining-requests") == "8"
    assert tokens_left(again) == 1000 - 7 - (len(call(max_tokens=10).body.raw) // 4 + 10)


async def test_a_slot_comes_back_however_the_call_ends(bench: Bench) -> None:
    person = await bench.person(Limit(concurrency=1))
    async with await bench.admit(person):
        assert (await bench.refused(person)).dimension == "concurrency"
    with pytest.raises(RuntimeError):
        async with await bench.admit(person):
            raise RuntimeError
    with pytest.raises(asyncio.CancelledError):
        async with await bench.admit(person):
            raise asyncio.CancelledError
    lease = await bench.admit(person)
    async with lease:
        await lease.end()
        await lease.end()
    assert len(bench.limits.settled) == 4, "each once"
    assert await bench.granted(person, 3) == 1


async def test_what_was_used_first_counts(bench: Bench) -> None:
    person = await bench.person(Limit(tpm=1000))
    lease = (await bench.admit(person, call(max_tokens=500))).lease
    await lease.end(Spent(input=30, output=12))
    assert lease.settle(Spent(input=1, output=1)) is None
    await lease.end(Spent(input=2, output=2))
    ((_, at, used),) = bench.limits.settled
    assert list(used) == [42] and at == lease.at * 1e6


async def test_every_dimension_is_settled_in_its_own_unit(tmp_path: Path) -> None:
    whole = Budget(day=Allowance(tokens=9999, cost_micros=99_999))
    limit = Limit(rpm=9, tpm=9000, itpm=8000, otpm=7000, concurrency=3, budget=whole)
    bench = Bench(tmp_path, Rules(models={"r": limit}), prices={"r": PRICE})
    person = await bench.person(limit)
    await bench.done(person, spent=Spent(input=30, cached=10, output=12, cost=141))
    ((ask, _, used),) = bench.limits.settled
    told = {(d.scope, d.name, d.unit): n for d, n in zip(ask.plan.dimensions, used, strict=True)}
    for scope in ("key", "model"):
        assert told[scope, "rpm", "requests"] == told[scope, "concurrency", "calls"] == 1
        assert (told[scope, "tpm", "tokens"], told[scope, "itpm", "input"], told[scope, "otpm", "output"]) == (
            42,
            30,
            12,
        )
        assert (told[scope, "budget", "tokens"], told[scope, "budget", "cost"]) == (42, 141)


async def test_what_was_reserved_and_not_used_comes_back(bench: Bench) -> None:
    person = await bench.person(Limit(tpm=10_000))
    asked = call(max_tokens=5000)
    reserved = 5000 + len(asked.body.raw) // 4
    first = await bench.admit(person, asked, spent=Spent(input=10, output=20))
    assert tokens_left(first) == 10_000 - reserved
    async with first:
        pass
    assert tokens_left(await bench.admit(person, asked)) == 10_000 - 30 - reserved


async def test_what_was_used_beyond_is_a_debt(bench: Bench) -> None:
    person = await bench.person(Limit(tpm=600))
    await bench.done(person, call(max_tokens=10), spent=Spent(input=100, output=1000))
    denied = await bench.refused(person, call(max_tokens=10))
    assert denied.dimension == "tpm"
    needed = 10 + len(call(max_tokens=10).body.raw) // 4
    assert denied.retry_after == pytest.approx((1100 - 600 + needed) / 10, abs=0.11)
    bench.clock.advance(denied.retry_after or 0)
    await bench.admit(person, call(max_tokens=10))


@pytest.mark.parametrize("limit", [1, 10, 50, 200])
async def test_under_a_limit_smaller_than_what_is_assumed_a_call_is_let_in(bench: Bench, limit: int) -> None:
    """BerriAI/litellm#28805: a floor of 1024 tokens answered 429 for ever, with all of the limit remaining."""
    person = await bench.person(structs.replace(day(tokens=limit), tpm=limit, otpm=limit))
    if limit == 1:
        with pytest.raises(NeverFits):
            await bench.admit(person)
    else:
        await bench.admit(person)
        await bench.refused(person)


async def test_the_learned_length_of_answers_is_reserved(bench: Bench) -> None:
    person = await bench.person(Limit(tpm=100_000))
    for _ in range(30):
        bench.admission.estimator.learn(call(), person.key.id, "r", 10, 40)
    lease = await bench.admit(person)
    expected = len(call().body.raw) // 4 + bench.admission.estimator.estimate(call(), "k", "r").output
    assert 100_000 - tokens_left(lease) == pytest.approx(expected, abs=40)
    assert 100_000 - tokens_left(lease) < 200


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        (Limit(tpm=500), {"max_tokens": 501}),
        (Limit(otpm=500), {"max_tokens": 501}),
        (Limit(otpm=500), {"max_tokens": 251, "n": 2}),
        (Limit(otpm=500), {"max_completion_tokens": 501, "max_tokens": 1}),
        (Limit(itpm=500), {"user": "x" * 9000}),
        (day(tokens=500), {"max_tokens": 501}),
        (day(cost_micros=5000), {"max_tokens": 501}),
        (Limit(tpm=500), {"max_tokens": 10**15, "n": 10**15}),
    ],
)
@pytest.mark.parametrize("scope", ["key", "tenant", "model", "key_model"])
async def test_a_call_that_can_never_fit_is_refused_for_good(
    tmp_path: Path, scope: str, limit: Limit, asked: dict[str, Any]
) -> None:
    where = limited(scope, limit)
    bench = Bench(tmp_path, where.get("rules"), prices={"r": PRICE})
    person = await bench.person(Limit(rpm=100), **where.get("fields", {}))
    for _ in range(3):
        with pytest.raises(NeverFits) as caught:
            await bench.admit(person, call(**asked))
        assert caught.value.should_retry is False and caught.value.status == 400
    assert bench.limits.asked == [], "nothing is charged for it"
    small = await bench.admit(person, call(max_tokens=10))
    assert header(small, "x-ratelimit-remaining-requests") == "99"


async def test_a_call_that_just_fits_is_let_in(bench: Bench) -> None:
    person = await bench.person(Limit(otpm=500))
    await bench.admit(person, call(max_tokens=500))


@pytest.mark.parametrize("cached", [None, 100_000])
async def test_money_is_reserved_and_settled_by_the_prices(tmp_path: Path, cached: int | None) -> None:
    price = Price(input=1_000_000, cached=cached, output=10_000_000)
    bench = Bench(tmp_path, prices={"r": price})
    person = await bench.person(day(cost_micros=10_000))
    asked = call(max_tokens=900)
    prompt = len(asked.body.raw) // 4
    lease = await bench.admit(person, asked, spent=Spent(input=100, output=20, cost=300))
    (ask,) = bench.limits.asked
    assert ask.amounts[0] == prompt + 9000
    assert isinstance(await bench.refused(person, asked), OutOfBudget)
    async with lease:
        pass
    await bench.admit(person, asked)


async def test_a_model_without_a_price_costs_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, prices={"r": PRICE})
    person = await bench.person(day(cost_micros=10))
    with pytest.raises(NeverFits):
        await bench.admit(person, call(max_tokens=10), route="r")
    for _ in range(3):
        await bench.admit(person, call(max_tokens=10), route="free")


async def test_a_model_that_costs_nothing_may_be_used_when_all_money_is_spent(tmp_path: Path) -> None:
    bench = Bench(tmp_path, prices={"r": PRICE})
    person = await bench.person(day(cost_micros=5000))
    await bench.done(person, call(max_tokens=10), spent=Spent(input=10, output=999, cost=9999))
    assert isinstance(await bench.refused(person, call(max_tokens=10)), OutOfBudget)
    await bench.admit(person, route="free")


async def test_a_spent_budget_says_when_it_is_whole_again(bench: Bench) -> None:
    person = await bench.person(day(tokens=100))
    await bench.done(person, call(max_tokens=10), spent=Spent(input=90, output=10))
    error = await bench.refused(person, call(max_tokens=10))
    assert isinstance(error, OutOfBudget) and error.should_retry is False
    assert error.retry_after == 86400 - bench.clock.now() % 86400
    bench.clock.advance(error.retry_after)
    await bench.admit(person, call(max_tokens=10))


async def test_a_budget_that_calls_under_way_have_reserved_says_come_again(bench: Bench) -> None:
    person = await bench.person(day(tokens=100))
    lease = await bench.admit(person, call(max_tokens=60))
    error = await bench.refused(person, call(max_tokens=60))
    assert isinstance(error, OutOfBudget) and error.should_retry is True and error.retry_after == 1
    async with lease:
        pass
    await bench.admit(person, call(max_tokens=60))


async def test_the_rest_of_a_budget_can_be_spent_by_calls_that_do_not_bound_their_answers(bench: Bench) -> None:
    """What is assumed of an answer is no reason to say that a budget is used up of which most is left."""
    person = await bench.person(structs.replace(day(tokens=300), rpm=100))
    for number in range(9):
        await bench.done(person, spent=Spent(input=20, output=10))
        assert len(bench.limits.settled) == number + 1
    amounts = [ask.amounts[1] for ask, _, _ in bench.limits.settled]
    assert amounts[-1] == 300 - 8 * 30
    assert await bench.granted(person, 2, call(max_tokens=100)) == 0, "this one said that it may need more than is left"
    error = await bench.refused(person, call(user="x" * 8 * 31))
    assert isinstance(error, OutOfBudget), "the prompt alone is more than is left"
    last = await bench.done(person, spent=Spent(input=20, output=500))
    assert header(last, "x-ratelimit-remaining-requests") == "90", "each was charged once"
    error = await bench.refused(person)
    assert isinstance(error, OutOfBudget) and error.should_retry is False


async def test_the_rest_of_a_budget_is_one_calls_at_a_time(bench: Bench) -> None:
    person = await bench.person(day(tokens=300))
    await bench.done(person, spent=Spent(input=100, output=150))
    async with await bench.admit(person):
        error = await bench.refused(person)
        assert isinstance(error, OutOfBudget) and error.should_retry is True
    await bench.admit(person)


async def test_the_rests_of_several_budgets_can_be_spent(tmp_path: Path) -> None:
    both = Limit(budget=Budget(day=Allowance(tokens=300), month=Allowance(cost_micros=3000)))
    bench = Bench(tmp_path, Rules(tenant=day(tokens=290)), prices={"r": PRICE})
    person = await bench.person(both)
    await bench.done(person, spent=Spent(input=20, output=200, cost=2020))
    await bench.done(person, spent=Spent(input=20, output=10, cost=120))
    await bench.admit(person)


async def test_a_denial_carries_the_headers(bench: Bench) -> None:
    person = await bench.person(Limit(rpm=60))
    assert await bench.granted(person, 60) == 60
    error = await bench.refused(person)
    assert error.retry_after == pytest.approx(1.0)
    assert error.headers["x-ratelimit-limit-requests"] == "60"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.headers["x-ratelimit-reset-requests"] == "1m0s"


async def test_a_denial_tells_of_the_limit_that_denied(bench: Bench) -> None:
    """Not of another one that has fewer left, and enough of them."""
    person = await bench.person(Limit(tpm=300, itpm=100))
    await bench.admit(person, call(max_tokens=130))
    left = 300 - 130 - len(call(max_tokens=130).body.raw) // 4
    asked = call(max_tokens=left)
    error = await bench.refused(person, asked)
    assert error.dimension == "tpm"
    assert error.headers["x-ratelimit-limit-tokens"] == "300"
    assert error.headers["x-ratelimit-remaining-tokens"] == str(left)


async def test_a_grant_carries_the_headers(bench: Bench) -> None:
    lease = await bench.admit(await bench.person(Limit(rpm=60, concurrency=3)))
    assert dict(lease.headers) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
    }


async def test_the_table_turns_the_ietfs_headers_on(tmp_path: Path) -> None:
    for ietf in (False, True):
        bench = Bench(tmp_path / str(ietf), Rules(key=Limit(rpm=60), ietf_headers=ietf))
        lease = await bench.admit(await bench.person())
        assert (header(lease, "ratelimit") == '"rpm";r=59;t=1') is ietf
        assert (header(lease, "ratelimit-policy") == '"rpm";q=60;w=60') is ietf


async def test_the_tightest_of_four_scopes_is_told(tmp_path: Path) -> None:
    rules = Rules(key=Limit(rpm=50), tenant=Limit(rpm=5), models={"r": Limit(rpm=40)}, key_models={"r": Limit(rpm=30)})
    bench = Bench(tmp_path, rules)
    lease = await bench.admit(await bench.person())
    assert header(lease, "x-ratelimit-limit-requests") == "5"
    assert header(lease, "x-ratelimit-remaining-requests") == "4"


async def test_records_that_changed_meanwhile_are_loaded_again(bench: Bench) -> None:
    old = await bench.person(Limit(rpm=1))
    await bench.changed(old, Limit(rpm=3))
    assert await bench.granted(old, 5) == 3
    assert bench.refreshed == 5


async def test_a_tenant_that_was_given_a_limit_meanwhile_is_loaded_again(bench: Bench) -> None:
    old = await bench.person(Limit(rpm=100))
    above = (await bench.person(id="k2", tenant=Limit(rpm=2))).tenant
    assert above is not None
    assert await bench.granted(old, 5) == 2
    assert bench.denied[0] == ("tenant", "rpm")


async def test_a_key_revoked_meanwhile_is_refused(bench: Bench) -> None:
    old = await bench.person(Limit(rpm=1))
    await bench.store.records.put(structs.replace(old.key, version=2, revoked=5.0))
    with pytest.raises(Unauthenticated):
        await bench.admit(old)


async def test_a_key_that_never_stands_still_is_told_to_come_again(bench: Bench) -> None:
    old = await bench.person(Limit(rpm=1))
    await bench.changed(old, Limit(rpm=1))

    async def useless() -> tuple[Person, Call]:
        bench.refreshed += 1
        return old, call()

    with pytest.raises(RateLimited) as caught:
        await bench.admission.admit(call(), old, "r", useless)
    assert caught.value.retry_after and bench.refreshed == MAX_STALE


async def test_the_time_of_the_decision_is_measured(bench: Bench) -> None:
    person = await bench.person(Limit(rpm=10))
    await bench.admit(person)
    bench.limits.down = True
    await bench.admit(person)
    assert len(bench.seconds) == 2 and all(value >= 0 for value in bench.seconds)


async def waits(bench: Bench, limit: Limit, *, held: int = 0) -> bool:
    """Whether the end of a call waits while the store does not confirm its settlement; if so, not for ever."""
    person = await bench.person(limit)
    lease = await bench.admit(person)
    for _ in range(held):
        await bench.admit(person)
    bench.limits.told = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(lease.end())
    await settle()
    waited = not ended.done()
    await ended
    return waited


async def test_the_end_of_a_call_waits_until_the_store_knows_that_its_slot_is_free(bench: Bench) -> None:
    """The client may be back at once, at another gateway."""
    person = await bench.person(Limit(concurrency=1))
    lease = await bench.admit(person)
    bench.limits.told = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(lease.end())
    await settle()
    assert not ended.done()
    bench.limits.told.set_result(1)
    await settle()
    assert ended.done()


async def test_a_slot_that_has_become_scarce_meanwhile_is_waited_for_too(bench: Bench) -> None:
    """Of twenty slots nineteen were free when the call came; when it ends all are taken."""
    assert await waits(bench, Limit(concurrency=20), held=19)


async def test_a_store_that_does_not_say_delays_the_end_of_a_call_a_moment_only(bench: Bench) -> None:
    assert await waits(bench, Limit(concurrency=1))


async def test_nobody_waits_where_there_are_no_slots(bench: Bench) -> None:
    assert not await waits(bench, Limit(rpm=2, tpm=100_000))


async def test_a_client_that_left_is_not_waited_for(bench: Bench) -> None:
    person = await bench.person(Limit(concurrency=1))
    lease = await bench.admit(person)
    bench.limits.told = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.CancelledError):
        async with lease:
            raise asyncio.CancelledError
    assert not bench.limits.told.done()
    assert len(bench.limits.settled) == 1


async def test_a_settlement_that_fails_is_not_the_calls_failure(bench: Bench) -> None:
    person = await bench.person(Limit(concurrency=1))
    async with await bench.admit(person):
        bench.limits.told = asyncio.get_running_loop().create_future()
        bench.limits.told.set_exception(RuntimeError("gone"))
    assert bench.limits.told.exception() is not None
