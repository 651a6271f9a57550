"""One suite for every store: what admission promises, whoever keeps the counters."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest
from contract.subject import Subject
from contract.wanted import Wanted

from gateway.store import LEASE_SECONDS

SCOPES = ("key", "tenant", "model", "key_model")


WEEK = 7 * 86_400.0
"""A window in which a slow machine sees nothing come back."""


def whole(subject: Subject, full: tuple[str, str] | None = None) -> list[Wanted]:
    """A dimension of every kind in every scope; the one named (scope, kind) has room for one call only."""
    found = []
    for scope in SCOPES:
        for kind, limit in (("rpm", 50), ("tpm", 500), ("lease", 50), ("budget", 500)):
            limited = limit if full != (scope, kind) else (10 if kind in ("tpm", "budget") else 1)
            if kind == "lease":
                found.append(subject.lease(limited, scope=scope))
            elif kind == "budget":
                found.append(subject.budget(limited, 10, "month", scope=scope))
            else:
                found.append(subject.rate(limited, WEEK, kind, 1 if kind == "rpm" else 10, scope))
    return found


async def test_a_rate_grants_as_many_as_its_limit_at_once(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.rate(5), times=12) == 5


async def test_slots_are_granted_up_to_the_limit(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.lease(3), times=7) == 3


async def test_a_grant_tells_what_is_left(subject: Subject) -> None:
    await subject.key()
    dimensions = (subject.rate(4, 400.0), subject.lease(10), subject.budget(100, 20))
    left = [(await subject.admit(*dimensions)).standings for _ in range(4)]
    assert [tuple(standing.remaining for standing in each) for each in left] == [
        (3, 9, 80),
        (2, 8, 60),
        (1, 7, 40),
        (0, 6, 20),
    ]
    assert left[-1][0].reset == pytest.approx(400, abs=1)
    assert 0 < left[-1][2].reset <= 86_400
    denied = await subject.admit(*dimensions)
    assert denied.denied == 0
    assert denied.standings[0].remaining == 0
    assert denied.retry_after == pytest.approx(100, abs=1)


async def test_a_denial_tells_what_is_left_without_the_call_that_was_not_let_in(subject: Subject) -> None:
    await subject.key()
    full, free = subject.rate(1, 600.0, "rpm"), subject.tokens(100, 30, 600.0)
    slots, purse = subject.lease(5), subject.budget(100, 30)
    await subject.granted(full, free, slots, purse)
    denied = await subject.admit(full, free, slots, purse)
    assert denied.denied == 0
    assert [standing.remaining for standing in denied.standings] == [0, 70, 4, 70]


async def test_an_ask_without_limits_is_granted(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(times=3) == 3


async def test_a_grant_tells_the_stores_time(clocked: Subject) -> None:
    await clocked.key()
    await clocked.sleep(0.25)
    assert clocked.clock is not None
    _, verdict = await clocked.granted(clocked.rate(2))
    assert verdict.at == int(clocked.clock.time * 1_000_000)


@pytest.mark.parametrize("full_first", [True, False])
async def test_one_denied_dimension_charges_none(subject: Subject, full_first: bool) -> None:
    await subject.key()
    rate, lease = subject.rate(5), subject.lease(1, "full")
    assert await subject.grants(lease, times=1) == 1
    both = (lease, rate) if full_first else (rate, lease)
    for _ in range(10):
        verdict = await subject.admit(*both)
        assert verdict.denied == both.index(lease)
        assert verdict.retry_after > 0
    assert await subject.grants(rate, times=10) == 5
    denied = await subject.admit(rate, subject.lease(1, "free"))
    assert denied.denied == 0
    assert await subject.grants(subject.lease(1, "free"), times=1) == 1


@pytest.mark.parametrize("full", list(product(SCOPES, ("rpm", "tpm", "lease", "budget"))), ids="-".join)
async def test_any_of_sixteen_dimensions_says_no_for_all(subject: Subject, full: tuple[str, str]) -> None:
    """Every kind in every scope in one ask: the one without room is named, and nothing else is charged."""
    await subject.key()
    dimensions = whole(subject, full)
    full_at = SCOPES.index(full[0]) * 4 + ("rpm", "tpm", "lease", "budget").index(full[1])
    await subject.granted(*dimensions)
    before = [await subject.left(dimension) for dimension in dimensions]
    for _ in range(3):
        assert (await subject.admit(*dimensions)).denied == full_at
    assert [await subject.left(dimension) for dimension in dimensions] == before
    rest = [dimension for dimension in dimensions if dimension is not dimensions[full_at]]
    _, verdict = await subject.granted(*rest)
    assert [standing.remaining for standing in verdict.standings] == [
        left - dimension.amount
        for left, dimension in zip(before, dimensions, strict=True)
        if dimension is not dimensions[full_at]
    ]


async def test_the_longest_wait_is_told(subject: Subject) -> None:
    await subject.key()
    short, long = subject.rate(1, 10.0, "short"), subject.rate(1, 100.0, "long")
    assert await subject.grants(short, long, times=1) == 1
    for order in ((short, long), (long, short)):
        verdict = await subject.admit(*order)
        assert verdict.denied == order.index(long)
        assert verdict.retry_after == pytest.approx(100, abs=1)


async def test_an_amount_is_charged_at_once(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.rate(10, amount=4), times=5) == 2
    assert await subject.grants(subject.rate(10, amount=1), times=5) == 2


@pytest.mark.parametrize("limit", [1, 3])
async def test_retry_after_is_honest(subject: Subject, limit: int) -> None:
    """Denied a tenth before the time told, granted at the time told."""
    window = 1.0 * limit
    await subject.key()
    for attempt in range(5):
        rate = subject.rate(limit, window, f"rpm{attempt}")
        assert await subject.grants(rate, times=limit) == limit
        before = subject.time()
        told = (await subject.admit(rate)).retry_after
        assert 0 < told <= window / limit
        await subject.sleep(before + 0.9 * told - subject.time())
        early = await subject.admit(rate)
        if subject.time() - before >= told:
            continue  # this machine was too busy to ask in time
        assert early.denied == 0
        asked = subject.time()
        await subject.sleep(early.retry_after)
        await subject.sleep(asked + early.retry_after - subject.time())
        assert (await subject.admit(rate)).denied is None
        assert (await subject.admit(rate)).denied == 0
        return
    pytest.fail("this machine is too busy to measure tenths of a second")


async def test_a_bucket_is_whole_again_after_its_window(subject: Subject) -> None:
    await subject.key()
    rate = subject.rate(4, 0.4)
    assert await subject.grants(rate, times=4) == 4
    await subject.sleep(0.45)
    assert await subject.grants(subject.rate(4, 4000.0), times=8) == 4


async def test_a_settled_slot_is_free_at_once(subject: Subject) -> None:
    await subject.key()
    lease = subject.lease(2)
    first, _ = await subject.granted(lease), await subject.granted(lease)
    assert (await subject.admit(lease)).denied == 0
    subject.store.limits.settle(first[0], first[1].at, (0,))  # freed for the very next ask: no round trip in between
    assert await subject.grants(lease, times=3) == 1


async def test_settling_twice_frees_one_slot(subject: Subject) -> None:
    await subject.key()
    lease = subject.lease(2)
    first, _ = await subject.granted(lease), await subject.granted(lease)
    for _ in range(3):
        await subject.settle(first, 1)
    assert await subject.grants(lease, times=3) == 1
    await subject.settle(first, 1)
    assert await subject.grants(lease, times=1) == 0


async def test_settling_what_was_denied_frees_no_slot(subject: Subject) -> None:
    await subject.key()
    lease = subject.lease(1)
    assert await subject.grants(lease, times=1) == 1
    denied = subject.ask(lease)
    verdict = await subject.store.limits.admit(denied)
    assert verdict.denied == 0
    await subject.settle((denied, verdict), 1)
    assert await subject.grants(lease, times=1) == 0


async def test_a_hundred_asks_at_once_get_exactly_the_limit(subject: Subject) -> None:
    await subject.key()
    for dimension, limit in (
        (subject.rate(37, 3600.0), 37),
        (subject.lease(23), 23),
        (subject.tokens(100, 7, 3600.0), 14),
        (subject.budget(100, 9, "month"), 11),
    ):
        verdicts = await asyncio.gather(*(subject.admit(dimension) for _ in range(100)))
        assert sum(verdict.denied is None for verdict in verdicts) == limit


@pytest.mark.parametrize("ticks", range(6))
async def test_a_cancelled_ask_leaks_neither_slot_nor_budget(subject: Subject, ticks: int) -> None:
    await subject.key()
    lease, budget = subject.lease(5), subject.budget(500, 100, "month")
    tasks = [asyncio.create_task(subject.admit(lease, budget)) for _ in range(5)]
    for _ in range(ticks):
        await asyncio.sleep(0.0002 * ticks)
    cancelled = [task for task in tasks if not task.done() and task.cancel()]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    held = sum(not isinstance(result, BaseException) for result in done)
    assert held == 5 - len(cancelled)
    for _ in range(3):
        await subject.store.ping()  # late answers have come by now, and what they granted has gone back
    assert await subject.left(budget) == 100 * (5 - held)
    assert await subject.grants(lease, times=9) == 5 - held


async def test_counters_are_their_own_by_name_scope_and_unit(subject: Subject) -> None:
    await subject.key()
    assert await subject.grants(subject.rate(1, name="one"), times=2) == 1
    assert await subject.grants(subject.rate(1, name="other"), times=2) == 1
    for scope in SCOPES:
        assert await subject.grants(subject.lease(1, scope=scope), times=2) == 1
        for unit in ("tokens", "cost"):
            assert await subject.grants(subject.budget(1, unit=unit, scope=scope, period="month"), times=2) == 1


async def test_a_lowered_limit_holds_for_the_next_ask_and_a_raised_one_too(subject: Subject) -> None:
    await subject.key()
    for make in (subject.lease, lambda limit: subject.budget(limit, 1, "month")):
        assert await subject.grants(make(10), times=6) == 6
        assert await subject.grants(make(4), times=2) == 0
        assert (await subject.admit(make(4))).standings[0].remaining == 0
        assert await subject.grants(make(8), times=4) == 2


async def test_a_slot_is_held_until_the_call_ends_however_long_it_takes(clocked: Subject) -> None:
    """Thirty minutes of one stream, whose worker tells every few seconds that it lives."""
    await clocked.key()
    lease = clocked.lease(1)
    held = await clocked.granted(lease)
    for _ in range(int(1800 / (LEASE_SECONDS / 3))):
        await clocked.sleep(LEASE_SECONDS / 3)
        await clocked.renew()
        assert (await clocked.admit(lease)).denied == 0
    await clocked.settle(held, 0)
    assert (await clocked.admit(lease)).denied is None
