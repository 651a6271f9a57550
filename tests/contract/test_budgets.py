"""Budgets: what was spent in a calendar period, and what calls under way may still spend. In UTC."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from contract.subject import Subject
from contract.timed import RedisClock

from gateway.core.types import Period
from gateway.store import LEASE_SECONDS

PERIODS: tuple[Period, ...] = ("day", "week", "month")
MICRO = 1_000_000


def at(text: str) -> float:
    """A UTC time as seconds since the epoch."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def move(subject: Subject, text: str) -> None:
    """Set the clock; it may go to any time."""
    assert subject.clock is not None
    if isinstance(subject.clock, RedisClock):
        subject.clock.set(at(text))
    else:
        subject.clock.time = at(text)


async def test_a_reservation_counts_until_the_call_ends(subject: Subject) -> None:
    await subject.key()
    budget = subject.budget(100, 60, "month")
    call = await subject.granted(budget)
    assert (await subject.admit(budget)).denied == 0
    await subject.settle(call, 10)
    second = await subject.granted(budget)
    assert (await subject.admit(budget)).denied == 0
    await subject.settle(second, 60)
    assert await subject.left(budget) == 30


async def test_what_is_spent_is_told_from_what_is_only_reserved(subject: Subject) -> None:
    """A budget that is spent refuses every call until it ends; reservations may come back."""
    await subject.key()
    budget, small = subject.budget(100, 60, "month"), subject.budget(100, 1, "month")
    first = await subject.granted(budget)
    denied = await subject.admit(budget)
    assert denied.denied == 0 and not denied.spent, "all but 40 is reserved"
    await subject.settle(first, 60)
    denied = await subject.admit(budget)
    assert denied.denied == 0 and not denied.spent and denied.standings[0].remaining == 40
    second = await subject.granted(subject.budget(100, 40, "month"))
    denied = await subject.admit(small)
    assert denied.denied == 0 and not denied.spent and denied.standings[0].remaining == 0
    await subject.settle(second, 40)
    denied = await subject.admit(small)
    assert denied.denied == 0 and denied.spent and denied.standings[0].remaining == 0
    rate = subject.rate(1)
    await subject.granted(rate)
    assert not (await subject.admit(rate)).spent


async def test_parallel_calls_cannot_overspend(subject: Subject) -> None:
    await subject.key()
    budget = subject.budget(1000, 90, "month")
    verdicts = await asyncio.gather(*(subject.admit(budget) for _ in range(50)))
    assert sum(verdict.denied is None for verdict in verdicts) == 11


async def test_exactly_the_limit_may_be_spent(clocked: Subject) -> None:
    await clocked.key()
    budget = clocked.budget(100, 50)
    for _ in range(2):
        await clocked.settle(await clocked.granted(budget), 50)
    assert (await clocked.admit(clocked.budget(100, 1))).denied == 0


async def test_money_is_counted_in_whole_micro_units(clocked: Subject) -> None:
    """A billion of the currency and a millionth: more digits than a float text of Lua keeps."""
    await clocked.key()
    limit = 10**15
    money = clocked.budget(limit, 10**15 - 1, unit="cost")
    await clocked.settle(await clocked.granted(money), 10**15 - 3)
    assert await clocked.left(money) == 3
    one = clocked.budget(limit, 1, unit="cost")
    for _ in range(3):
        await clocked.settle(await clocked.granted(one), 1)
    assert (await clocked.admit(one)).denied == 0


async def test_tokens_and_money_of_all_periods_are_counted_side_by_side(clocked: Subject) -> None:
    await clocked.key()
    move(clocked, "2026-11-22T12:00:00")
    dimensions = [
        clocked.budget(1000 * (n + 1), 100, period, unit)
        for n, (period, unit) in enumerate((period, unit) for period in PERIODS for unit in ("tokens", "cost"))
    ]
    await clocked.settle(await clocked.granted(*dimensions), *range(1, 7))
    assert [await clocked.left(each) for each in dimensions] == [999, 1998, 2997, 3996, 4995, 5994]
    move(clocked, "2026-11-23T00:00:00")  # a Monday: a new day and a new week
    assert [await clocked.left(each) for each in dimensions] == [1000, 2000, 3000, 4000, 4995, 5994]


async def test_spending_beyond_the_limit_is_kept(clocked: Subject) -> None:
    """A call that used more than it had reserved is charged whole."""
    await clocked.key()
    budget = clocked.budget(100, 50)
    await clocked.settle(await clocked.granted(budget), 180)
    assert await clocked.left(budget) == 0
    assert (await clocked.admit(clocked.budget(200, 20))).denied is None
    assert (await clocked.admit(clocked.budget(200, 1))).denied == 0


BOUNDARIES: list[tuple[Period, str, str]] = [
    ("day", "2026-11-22T23:59:59", "2026-11-23T00:00:00"),
    ("day", "2028-02-28T23:59:59", "2028-02-29T00:00:00"),
    ("day", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
    ("week", "2026-11-22T23:59:59", "2026-11-23T00:00:00"),
    ("week", "2027-01-03T23:59:59", "2027-01-04T00:00:00"),
    ("week", "2028-03-05T23:59:59", "2028-03-06T00:00:00"),
    ("month", "2026-11-30T23:59:59", "2026-12-01T00:00:00"),
    ("month", "2027-01-31T23:59:59", "2027-02-01T00:00:00"),
    ("month", "2027-02-28T23:59:59", "2027-03-01T00:00:00"),
    ("month", "2028-02-29T23:59:59", "2028-03-01T00:00:00"),
    ("month", "2100-02-28T23:59:59", "2100-03-01T00:00:00"),
    ("month", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
]


@pytest.mark.parametrize(("period", "last", "first"), BOUNDARIES)
async def test_a_new_period_begins_whole_to_the_second(clocked: Subject, period: Period, last: str, first: str) -> None:
    await clocked.key()
    budget = clocked.budget(100, 80, period)
    move(clocked, last)
    await clocked.settle(await clocked.granted(budget), 80)
    denied = await clocked.admit(budget)
    assert denied.denied == 0
    assert denied.retry_after == 1.0
    move(clocked, first)
    assert await clocked.left(budget) == 100


@pytest.mark.parametrize(
    ("period", "one", "other"),
    [
        ("day", "2026-11-22T00:00:00", "2026-11-22T23:59:59"),
        ("week", "2026-11-23T00:00:00", "2026-11-29T23:59:59"),
        ("week", "2026-12-28T00:00:00", "2027-01-03T23:59:59"),
        ("month", "2028-02-01T00:00:00", "2028-02-29T23:59:59"),
        ("month", "2026-12-01T00:00:00", "2026-12-31T23:59:59"),
        ("month", "2027-01-01T00:00:00", "2027-01-31T23:59:59"),
    ],
)
async def test_a_period_is_one_from_its_first_second_to_its_last(
    clocked: Subject, period: Period, one: str, other: str
) -> None:
    await clocked.key()
    budget = clocked.budget(100, 80, period)
    move(clocked, one)
    await clocked.settle(await clocked.granted(budget), 80)
    move(clocked, other)
    assert await clocked.left(budget) == 20


async def test_a_call_is_charged_to_the_period_of_its_admission(clocked: Subject) -> None:
    await clocked.key()
    budget = clocked.budget(100, 80)
    move(clocked, "2026-11-22T23:59:50")
    late = await clocked.granted(budget)
    move(clocked, "2026-11-23T00:00:01")
    early = await clocked.granted(budget)  # what is reserved in yesterday's budget is no reservation in today's
    await clocked.settle(late, 70)
    assert await clocked.left(budget) == 20
    await clocked.settle(early, 30)
    assert await clocked.left(budget) == 70


async def test_a_call_that_ends_first_in_a_new_period_charges_the_old_one(clocked: Subject) -> None:
    await clocked.key()
    budget = clocked.budget(100, 80)
    move(clocked, "2026-11-22T23:59:50")
    late = await clocked.granted(budget)
    move(clocked, "2026-11-23T00:00:01")
    await clocked.settle(late, 70)
    assert await clocked.left(budget) == 100


async def test_a_full_budget_tells_when_its_period_ends(clocked: Subject) -> None:
    await clocked.key()
    for period, days in zip(PERIODS, (0, 0, 8), strict=True):
        wait = days * 86_400 + 12 * 3600
        move(clocked, "2026-11-22T12:00:00")  # a Sunday
        budget = clocked.budget(100, 60, period)
        await clocked.settle(await clocked.granted(budget), 60)
        denied = await clocked.admit(budget)
        assert denied.denied == 0
        assert denied.retry_after == pytest.approx(wait, abs=0.001)
        assert denied.standings[0].remaining == 40
        assert denied.standings[0].reset == pytest.approx(wait, abs=0.001)


async def test_a_budget_that_is_only_reserved_tells_to_come_soon(clocked: Subject) -> None:
    """The calls under way may use less than they reserved; when they do, there is room at once."""
    await clocked.key()
    move(clocked, "2026-11-22T12:00:00")
    budget = clocked.budget(100, 60)
    call = await clocked.granted(budget)
    denied = await clocked.admit(budget)
    assert denied.denied == 0
    assert 0 < denied.retry_after <= LEASE_SECONDS
    await clocked.settle(call, 5)
    await clocked.granted(budget)


async def test_reservations_of_a_lost_worker_come_back(lost: Subject) -> None:
    """Nobody renews them: after the lease time they count no more, without anybody's help."""
    await lost.key()
    budget = lost.budget(100, 50)
    for _ in range(2):
        await lost.granted(budget)
    await lost.sleep(LEASE_SECONDS - 0.25)
    assert (await lost.admit(budget)).denied == 0
    await lost.sleep(0.25)
    assert await lost.grants(budget, times=3) == 2


async def test_many_reservations_of_a_lost_worker_come_back(lost: Subject) -> None:
    """However few each ask clears away, nobody waits longer than a second of asking."""
    await lost.key()
    for _ in range(100):
        await lost.granted(lost.budget(100, 1))
    await lost.sleep(LEASE_SECONDS)
    verdicts = [await lost.admit(lost.budget(100, 100)) for _ in range(4)]
    assert [verdict.denied for verdict in verdicts].count(None) == 1
    assert all(verdict.retry_after <= 1.0 for verdict in verdicts)


async def test_a_reservation_of_a_living_call_is_renewed(clocked: Subject) -> None:
    await clocked.key()
    budget = clocked.budget(100, 60)
    call = await clocked.granted(budget)
    for _ in range(12):
        await clocked.sleep(LEASE_SECONDS / 3)
        await clocked.renew()
        assert (await clocked.admit(budget)).denied == 0
    await clocked.settle(call, 0)
    await clocked.granted(budget)
