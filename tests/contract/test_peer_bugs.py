"""What went wrong elsewhere, one test each: those bugs that are about how counters are kept.

The rest, which need whole gateways, are in tests/integration/test_peer_bugs.py. Numbers are of BerriAI/litellm unless
the name says otherwise.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from contract.subject import Subject, in_redis
from harness.redis_server import RedisServer

from gateway.core.types import Dimension
from gateway.store import LEASE_SECONDS
from gateway.store.redis.store import RedisStore


async def test_litellm_18730_parallel_calls_do_not_pass_together(subject: Subject) -> None:
    """Tokens were counted when a call had ended, so five parallel calls used 663 of 100 tokens a minute."""
    await subject.key()
    tokens = subject.tokens(100, 40, 3600.0)
    calls = [subject.ask(tokens) for _ in range(5)]
    verdicts = await asyncio.gather(*(subject.store.limits.admit(call) for call in calls))
    granted = [(call, verdict) for call, verdict in zip(calls, verdicts, strict=True) if verdict.denied is None]
    assert len(granted) == 2
    for call in granted:
        await subject.settle(call, 33)
    assert await subject.left(tokens) == 100 - 66


async def test_litellm_27001_a_refused_call_reserves_nothing(subject: Subject) -> None:
    """All counters were raised first and compared afterwards: a refused call had already been charged."""
    await subject.key()
    tokens, requests, slots = subject.tokens(1000, 100, 3600.0), subject.rate(2, 3600.0), subject.lease(9)
    budget = subject.budget(1000, 100, "month")
    for _ in range(2):
        await subject.granted(tokens, requests, slots, budget)
    for _ in range(20):
        assert (await subject.admit(tokens, requests, slots, budget)).denied == 1
    assert await subject.left(tokens) == 800
    assert await subject.left(slots) == 7
    assert await subject.left(budget) == 800


async def test_litellm_35422_an_estimate_of_nothing_is_checked_all_the_same(clocked: Subject) -> None:
    """A reservation of zero skipped the check, so nothing was enforced for such calls."""
    await clocked.key()
    tokens, budget = clocked.tokens(100, 0), clocked.budget(200, 0)
    for left in (40, 0):
        await clocked.settle(await clocked.granted(tokens, budget), 60, 60)
        assert await clocked.left(tokens) == left
    assert (await clocked.admit(tokens)).denied == 0  # 20 in debt
    assert await clocked.left(budget) == 80
    await clocked.settle(await clocked.granted(budget), 90)
    assert (await clocked.admit(budget)).denied == 0


async def test_litellm_31952_an_estimate_of_nothing_does_not_reserve_everything(clocked: Subject) -> None:
    """In review: an estimator that found nothing to count made the call reserve the whole limit."""
    await clocked.key()
    for dimension in (clocked.tokens(100, 0), clocked.budget(100, 0)):
        await clocked.granted(dimension)
        assert await clocked.left(dimension) == 100


async def test_litellm_14204_asking_again_does_not_put_off_the_end_of_a_window(clocked: Subject) -> None:
    """Each increment set the counter's expiry anew, so a client that kept asking was never let in again."""
    await clocked.key()
    rate, tokens = clocked.rate(2, 10.0), clocked.tokens(20, 10, 10.0)
    granted = 0
    for _ in range(240):
        granted += (await clocked.admit(rate, tokens)).denied is None
        await clocked.sleep(0.25)
    assert granted == 2 + 11  # the burst, then one for every 5 s


async def test_litellm_14204_asking_again_does_not_put_off_the_end_of_a_period(clocked: Subject) -> None:
    """The same with a budget: it begins anew with the calendar, however often it was asked for."""
    await clocked.key()
    budget = clocked.budget(10, 10)
    await clocked.settle(await clocked.granted(budget), 10)
    hours = 0
    while (denied := await clocked.admit(budget)).denied is not None:
        assert denied.retry_after <= 86_400 - 3600 * hours
        await clocked.sleep(3600)
        hours += 1
        assert hours <= 24


async def test_litellm_20256_the_slot_of_a_call_that_nobody_ends_comes_back(lost: Subject) -> None:
    """A call that timed out never gave its slot back: the key was locked until Redis was restarted."""
    await lost.key()
    lease = lost.lease(1)
    await lost.granted(lease)
    await lost.sleep(LEASE_SECONDS - 0.25)
    assert (await lost.admit(lease)).denied == 0
    await lost.sleep(0.25)
    await lost.granted(lease)


async def test_litellm_28160_other_calls_do_not_keep_a_lost_slot_alive(lost: Subject) -> None:
    """Every later call renewed the expiry of the one counter that held the leaked slots too."""
    await lost.key()
    lease = lost.lease(2)
    await lost.granted(lease)
    for _ in range(int(LEASE_SECONDS) - 1):
        await lost.sleep(1)
        await lost.settle(await lost.granted(lease), 1)
    assert await lost.left(lease) == 1
    await lost.sleep(1)
    assert await lost.left(lease) == 2


async def test_litellm_16011_the_number_of_parallel_calls_is_exact(redis: RedisServer) -> None:
    """Every worker counted for itself, later with a race: more calls ran at once than the limit says."""
    async with AsyncExitStack() as stack:
        stores = [RedisStore(redis.url, timeout=30.0) for _ in range(4)]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        subject = Subject(stores[0], None)
        await subject.key()
        lease = subject.lease(13)
        running = most = 0

        async def call(store: RedisStore) -> None:
            nonlocal running, most
            ask = subject.ask(lease)
            verdict = await store.limits.admit(ask)
            if verdict.denied is None:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.001)
                running -= 1
                store.limits.settle(ask, verdict.at, (1,))

        for _ in range(10):
            await asyncio.gather(*(call(store) for _ in range(25) for store in stores))
        assert most == 13
        for store in stores:
            await store.ping()
        assert await subject.left(lease) == 13


async def test_litellm_27639_reservations_of_the_dead_do_not_pile_up(redis: RedisServer) -> None:
    """Reservations that nobody took back grew the counter until keys that had spent nothing were refused."""
    async with in_redis(redis) as subject:
        await subject.key()
        budget = subject.budget(100, 30)
        for _ in range(5):
            for _ in range(3):
                await subject.granted(budget)
            assert (await subject.admit(budget)).denied == 0
            subject.store = await subject.store.successor()  # type: ignore[attr-defined]
            await subject.sleep(LEASE_SECONDS)
        assert await subject.left(budget) == 100


async def test_litellm_36926_spending_is_counted_once_under_load(subject: Subject) -> None:
    """With many calls at once the counter rose by reservation and spending both: refused at half of the budget."""
    await subject.key()
    budget = subject.budget(1_000_000, 700, "month", "cost")

    async def call() -> None:
        granted = await subject.granted(budget)
        await asyncio.sleep(0)
        subject.store.limits.settle(granted[0], granted[1].at, (600,))

    for _ in range(10):
        await asyncio.gather(*(call() for _ in range(50)))
    await subject.store.ping()
    assert await subject.left(budget) == 1_000_000 - 500 * 600


async def test_litellm_40050_what_is_enforced_is_what_was_recorded(subject: Subject) -> None:
    """The enforced sum was twice the recorded one: each call's cost was put on the counter in two places."""
    await subject.key()
    periods = [subject.budget(1000, 100, period, "cost", scope) for scope in ("key", "tenant") for period in ("month",)]
    recorded = 0
    for cost in (10, 0, 100, 37):
        call = await subject.granted(*periods)
        for _ in range(2):
            await subject.settle(call, *[cost] * len(periods))
        recorded += cost
        assert [await subject.left(budget) for budget in periods] == [1000 - recorded] * len(periods)


async def test_envoy_ai_gateway_680_and_2394_running_calls_count(subject: Subject) -> None:
    """Tokens were charged when a stream had ended, so however many began before that, all were let in."""
    await subject.key()
    tokens, budget = subject.tokens(1000, 300, 3600.0), subject.budget(1000, 300, "month")
    running = [await subject.granted(tokens, budget) for _ in range(3)]
    assert await subject.grants(tokens, times=10) == 0
    assert await subject.grants(budget, times=10) == 0
    for call in running:
        await subject.settle(call, 200, 200)
    assert await subject.grants(tokens, times=10) == 1


async def test_envoy_ratelimit_two_bursts_do_not_fit_around_the_turn_of_a_minute(clocked: Subject) -> None:
    """Counters of fixed minutes let a whole limit in at the end of one minute and again at the start of the next."""
    await clocked.key()
    assert clocked.clock is not None
    rate = clocked.rate(60)
    await clocked.sleep(59.5 - clocked.time() % 60)
    assert await clocked.grants(rate, times=100) == 60
    await clocked.sleep(1)
    assert await clocked.grants(rate, times=100) == 1


async def test_bifrost_3547_replicas_share_one_budget(redis: RedisServer) -> None:
    """Budgets lived in each process: so many replicas, so many times the cap."""
    async with AsyncExitStack() as stack:
        stores = [RedisStore(redis.url, timeout=30.0) for _ in range(3)]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        subject = Subject(stores[0], None)
        await subject.key()
        await subject.granted(subject.budget(1, 0, "month"))
        shared: tuple[Dimension, ...] = (subject.budget(1000, 100, "month"), subject.budget(900, 90, "month", "cost"))
        total = 0
        for turn in range(30):
            store = stores[turn % 3]
            ask = subject.ask(*shared)
            verdict = await store.limits.admit(ask)
            if verdict.denied is None:
                total += 1
                store.limits.settle(ask, verdict.at, (100, 90))
                await store.ping()
        assert total == 10
