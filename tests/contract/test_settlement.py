"""The end of a call: what it had reserved becomes what it used, once, and time is not given back."""

from __future__ import annotations

import asyncio

import pytest
from contract.subject import Subject

from gateway.store import LEASE_SECONDS


async def test_what_was_not_used_is_given_back(clocked: Subject) -> None:
    await clocked.key()
    tokens = clocked.tokens(1000, 800)
    call = await clocked.granted(tokens)
    assert await clocked.left(tokens) == 200
    await clocked.settle(call, 300)
    assert await clocked.left(tokens) == 700


async def test_a_call_that_used_nothing_gives_all_back(clocked: Subject) -> None:
    await clocked.key()
    tokens, budget = clocked.tokens(1000, 1000), clocked.budget(1000, 1000)
    await clocked.settle(await clocked.granted(tokens, budget), 0, 0)
    assert await clocked.left(tokens) == 1000
    assert await clocked.left(budget) == 1000


async def test_what_was_used_as_reserved_changes_nothing(clocked: Subject) -> None:
    await clocked.key()
    tokens = clocked.tokens(1000, 800)
    await clocked.settle(await clocked.granted(tokens), 800)
    assert await clocked.left(tokens) == 200


@pytest.mark.parametrize(("seconds", "used", "left"), [(0, 0, 1000), (6, 0, 1000), (15, 0, 1000), (15, 900, 350)])
async def test_a_refund_after_some_time(clocked: Subject, seconds: float, used: int, left: int) -> None:
    """60 s of 1,000: a second leaks 16 2/3. Unused and not yet leaked units come back, so the bucket is never more
    than whole, and holds what was used less what leaked meanwhile."""
    await clocked.key()
    tokens = clocked.tokens(1000, 1000)
    call = await clocked.granted(tokens)
    await clocked.sleep(seconds)
    await clocked.settle(call, used)
    assert await clocked.left(tokens) == left


async def test_time_that_passed_is_not_given_back(clocked: Subject) -> None:
    """A call reserves everything and runs for a window: all has leaked, and another call has taken it again."""
    await clocked.key()
    tokens = clocked.tokens(1000, 1000)
    first = await clocked.granted(tokens)
    await clocked.sleep(60)
    await clocked.granted(tokens)
    await clocked.settle(first, 0)
    assert await clocked.left(tokens) == 0
    assert (await clocked.admit(tokens)).denied == 0


async def test_of_a_refund_the_part_that_leaked_is_kept(clocked: Subject) -> None:
    """After half the window half of the reservation has leaked: of 1,000 unused units only 500 come back."""
    await clocked.key()
    first = await clocked.granted(clocked.tokens(1000, 1000))
    await clocked.sleep(30)
    await clocked.granted(clocked.tokens(1000, 500))
    await clocked.settle(first, 0)
    assert await clocked.left(clocked.tokens(1000, 1)) == 500


async def test_more_than_reserved_is_a_debt_that_the_next_calls_wait_for(clocked: Subject) -> None:
    await clocked.key()
    tokens = clocked.tokens(60, 10)
    call = await clocked.granted(tokens)
    await clocked.settle(call, 100)  # 40 more than the bucket holds, and 10 more are asked for: 50 s
    assert await clocked.left(tokens) == 0
    denied = await clocked.admit(tokens)
    assert denied.denied == 0
    assert denied.retry_after == pytest.approx(50, abs=0.001)
    await clocked.sleep(denied.retry_after - 0.5)
    assert (await clocked.admit(tokens)).denied == 0
    await clocked.sleep(0.5)
    assert (await clocked.admit(tokens)).denied is None


async def test_an_ask_for_nothing_waits_for_a_debt_too(clocked: Subject) -> None:
    await clocked.key()
    tokens = clocked.tokens(60, 10)
    await clocked.settle(await clocked.granted(tokens), 90)
    nothing = clocked.tokens(60, 0)
    denied = await clocked.admit(nothing)
    assert denied.denied == 0
    assert denied.retry_after == pytest.approx(30, abs=0.001)


async def test_a_debt_is_paid_once(clocked: Subject) -> None:
    await clocked.key()
    tokens = clocked.tokens(60, 30)
    await clocked.settle(await clocked.granted(tokens), 120)
    await clocked.sleep(60)
    assert await clocked.left(tokens) == 0
    await clocked.sleep(60)
    assert await clocked.left(tokens) == 60


@pytest.mark.parametrize("used", [0, 5, 10, 25])
@pytest.mark.parametrize("again", [0, 10, 40])
async def test_settling_twice_does_what_once_does(clocked: Subject, used: int, again: int) -> None:
    """Whatever the second one says: the first one counts."""
    await clocked.key()
    dimensions = (clocked.tokens(60, 10), clocked.lease(3), clocked.budget(60, 10), clocked.rate(5))
    call = await clocked.granted(*dimensions)
    await clocked.settle(call, used, 1, used, 1)
    once = [await clocked.left(dimension) for dimension in dimensions]
    for _ in range(3):
        await clocked.settle(call, again, 1, again, 1)
    assert [await clocked.left(dimension) for dimension in dimensions] == once == [60 - used, 3, 60 - used, 4]


async def test_a_call_that_used_what_it_reserved_is_settled_for_good_too(clocked: Subject) -> None:
    """Where there was nothing to correct, a second settlement with other numbers still has no say."""
    await clocked.key()
    tokens, lease = clocked.tokens(60, 10), clocked.lease(3)
    call = await clocked.granted(tokens, lease)
    await clocked.settle(call, 10, 1)
    for other in (0, 40):
        await clocked.settle(call, other, 1)
        assert await clocked.left(tokens) == 50


async def test_settling_twice_at_once_counts_once(subject: Subject) -> None:
    await subject.key()
    budget = subject.budget(1000, 100, "month")
    call = await subject.granted(budget)
    for _ in range(20):
        subject.store.limits.settle(call[0], call[1].at, (70,))
    await subject.store.ping()
    assert await subject.left(budget) == 930


async def test_what_was_denied_cannot_be_settled_to_anything(clocked: Subject) -> None:
    await clocked.key()
    tokens = clocked.tokens(60, 40)
    await clocked.granted(tokens)
    denied = clocked.ask(tokens)
    verdict = await clocked.store.limits.admit(denied)
    assert verdict.denied == 0
    assert await clocked.left(tokens) == 20


async def test_a_window_later_a_call_still_pays_for_what_it_used_beyond(clocked: Subject) -> None:
    """The reservation has leaked away; more than that is a debt from now."""
    await clocked.key()
    tokens = clocked.tokens(60, 10)
    call = await clocked.granted(tokens)
    await clocked.sleep(600)
    await clocked.settle(call, 30)
    assert await clocked.left(tokens) == 40


async def test_after_its_reservation_expired_a_call_pays_what_it_used(clocked: Subject) -> None:
    """Its worker had not been heard of: the reservation is gone, the spending is not."""
    await clocked.key()
    budget, tokens = clocked.budget(100, 40), clocked.tokens(100, 40)
    call = await clocked.granted(budget, tokens)
    await clocked.sleep(4 * LEASE_SECONDS)
    await clocked.settle(call, 25, 25)
    assert await clocked.left(budget) == 75
    assert await clocked.left(tokens) == 100  # 40 have leaked; 15 of them unused, and time is not given back
    await clocked.settle(call, 25, 25)
    assert await clocked.left(budget) == 75


async def test_each_kind_of_tokens_is_settled_with_its_own(clocked: Subject) -> None:
    await clocked.key()
    dimensions = (
        clocked.rate(10),
        clocked.tokens(1000, 500, name="tpm"),
        clocked.tokens(1000, 300, name="itpm"),
        clocked.tokens(1000, 200, name="otpm"),
        clocked.budget(1000, 500),
        clocked.budget(9000, 8000, unit="cost"),
    )
    await clocked.settle(await clocked.granted(*dimensions), 1, 50, 20, 30, 50, 777)
    assert [await clocked.left(dimension) for dimension in dimensions] == [9, 950, 980, 970, 950, 8223]


async def test_a_call_that_reserved_nothing_is_settled_whole(clocked: Subject) -> None:
    """As a call does whose tokens have no price, until the table gives them one while it runs."""
    await clocked.key()
    dimensions = (
        clocked.budget(1000, 0, unit="cost"),
        clocked.tokens(1000, 0),
        clocked.budget(1000, 0),
        clocked.lease(2),
    )
    await clocked.settle(await clocked.granted(*dimensions), 70, 60, 50, 1)
    assert [await clocked.left(dimension) for dimension in dimensions] == [930, 940, 950, 2]


async def test_settlements_of_many_calls_at_once_add_up(subject: Subject) -> None:
    await subject.key()
    budget, tokens = subject.budget(100_000, 500, "month"), subject.tokens(100_000, 500, 36_000.0)
    calls = await asyncio.gather(*(subject.granted(budget, tokens, subject.lease(200)) for _ in range(100)))
    for used, (ask, verdict) in enumerate(calls):
        subject.store.limits.settle(ask, verdict.at, (used, used, 1))
    await subject.store.ping()
    assert await subject.left(budget) == 100_000 - sum(range(100))
    assert await subject.left(tokens) == pytest.approx(100_000 - sum(range(100)), abs=10)
    assert await subject.left(subject.lease(200)) == 200


async def test_no_clock_but_the_stores_decides_how_much_has_leaked(clocked: Subject) -> None:
    """A store's clock that went back since the grant gives back no more than was not used."""
    await clocked.key()
    tokens = clocked.tokens(60, 30)
    call = await clocked.granted(tokens)
    await clocked.sleep(-3600)
    await clocked.settle(call, 10)
    assert await clocked.left(tokens) <= 50
