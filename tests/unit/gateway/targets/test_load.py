"""A target's load: every call leaves it exactly once, others' words grow old, and its clock never falls."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.targets.load import LEAST_CHARGE, RATE, STALE_SECONDS, Load, LoadReport, Share

STEPS = st.sampled_from(["first_token", "end"])


def counters(load: Load) -> tuple[int, int, int]:
    return load.prefill, load.waiting, load.running


@given(st.lists(st.tuples(st.integers(0, 5000), st.lists(STEPS, max_size=6)), max_size=12), st.randoms())
def test_every_share_is_released_once_in_any_order(calls: list[tuple[int, list[str]]], order: random.Random) -> None:
    load = Load()
    shares = [(Share(load, tokens), steps) for tokens, steps in calls]
    charged = sum(max(LEAST_CHARGE, tokens) for tokens, _ in calls)
    assert counters(load) == (charged, len(calls), len(calls))
    events = [(share, step) for share, steps in shares for step in steps]
    order.shuffle(events)
    for share, step in events:
        getattr(share, step)()
        assert min(counters(load)) >= 0
        assert load.waiting <= load.running
    for share, _ in shares:
        share.end()
        share.end()
    assert counters(load) == (0, 0, 0)
    assert load.charged == charged == load.clock, "what was charged stays charged"


def test_the_first_token_frees_the_prompt_and_the_end_the_rest() -> None:
    load = Load()
    share = Share(load, 700)
    assert (counters(load), load.charged) == ((700, 1, 1), 700)
    share.first_token()
    assert (counters(load), load.charged) == ((0, 0, 1), 700)
    share.first_token()
    share.end()
    assert (counters(load), load.charged) == ((0, 0, 0), 700)
    share.first_token()
    assert counters(load) == (0, 0, 0)


@pytest.mark.parametrize("tokens", [0, 1, 15, 16])
def test_a_prompt_that_is_all_cached_still_costs_something(tokens: int) -> None:
    load = Load()
    Share(load, tokens)
    assert load.prefill == load.charged == 16


async def test_a_storm_of_calls_that_end_in_every_way_leaves_nothing() -> None:
    """Answered, cancelled before and after the first token, failed, retried on the other target."""
    loads, chance = [Load(), Load()], random.Random(5)

    async def attempt(load: Load) -> None:
        share = Share(load, chance.randrange(4000))
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                raise ConnectionError
            share.first_token()
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                raise ConnectionError
        finally:
            share.end()

    async def call() -> None:
        try:
            await attempt(loads[0])
        except ConnectionError:
            await attempt(loads[1])

    tasks = [asyncio.create_task(call()) for _ in range(3000)]
    for task in chance.sample(tasks, 1000):
        await asyncio.sleep(0)
        task.cancel()
    endings = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in endings} == {type(None), ConnectionError, asyncio.CancelledError}
    assert [counters(load) for load in loads] == [(0, 0, 0), (0, 0, 0)]
    assert min(load.charged for load in loads) > 0


def told(**others: tuple[int, int, int, int, float]) -> dict[str, tuple[LoadReport, float]]:
    return {name: (LoadReport(*words[:4]), words[4]) for name, words in others.items()}


def test_what_others_tell_is_summed_and_replaced() -> None:
    load = Load()
    load.apply(told(a=(100, 1, 2, 100, 0.0), b=(300, 3, 5, 300, 0.0)), 10.0)
    assert (load.others_prefill, load.others_waiting, load.others_running) == (400, 4, 7)
    load.apply(told(a=(50, 1, 1, 150, 0.0)), 10.2)
    assert (load.others_prefill, load.others_waiting, load.others_running) == (50, 1, 1)
    load.apply({}, 10.4)
    assert (load.others_prefill, load.others_waiting, load.others_running) == (0, 0, 0)
    assert load.pending(10.4) == 0


def page(own: int, others: int, age: float) -> float:
    """`view` of the routing rule."""
    return own + max(0.0, others - RATE * age * others / (others + max(1, own)))


@given(st.integers(0, 50_000), st.integers(0, 50_000), st.floats(0, 2), st.floats(0, 5))
def test_pending_is_as_the_rule_has_it(own: int, others: int, age: float, later: float) -> None:
    load = Load()
    if own:
        Share(load, own)
    load.apply(told(a=(others, 1, 1, others, age)), 100.0)
    assert load.pending(100.0 + later) == pytest.approx(page(load.prefill, others, age + later), abs=1e-3)


def test_the_rate_is_that_of_the_rule() -> None:
    load = Load()
    load.apply(told(a=(10_000, 1, 1, 10_000, 0.0)), 0.0)
    assert load.pending(0.5) == pytest.approx(10_000 - 8000 * 0.5, abs=1)
    assert load.pending(60.0) == 0, "never less than nothing"
    Share(load, 30_000)
    assert load.pending(1.0) == pytest.approx(30_000 + 10_000 - 8000 / 4, abs=1), "they have a quarter of the rate"
    assert load.pending(60.0) == 30_000, "our own calls are known exactly: they do not grow old"


@given(st.lists(st.tuples(st.integers(1, 20_000), st.floats(0, 2)), min_size=1, max_size=5), st.integers(0, 20_000))
def test_words_of_different_ages_each_lose_what_their_age_says(others: list[tuple[int, float]], own: int) -> None:
    """While each still has something pending: the shrinking is linear, so the sum is of the parts."""
    load = Load()
    if own:
        Share(load, own)
    load.apply({f"g{n}": (LoadReport(tokens, 1, 1, tokens), age) for n, (tokens, age) in enumerate(others)}, 50.0)
    total = sum(tokens for tokens, _ in others)
    lost = sum(RATE * age * tokens / (total + max(1, load.prefill)) for tokens, age in others)
    assert load.pending(50.0) == pytest.approx(load.prefill + max(0.0, total - lost), rel=1e-6, abs=1e-3)


def test_a_dead_gateways_words_expire() -> None:
    load = Load()
    load.apply(told(dead=(500, 2, 3, 500, 1.9), live=(80, 1, 1, 80, 0.1)), 0.0)
    assert (load.others_prefill, load.others_waiting, load.others_running) == (580, 3, 4)
    load.apply(told(dead=(500, 2, 3, 500, 2.1), live=(80, 1, 1, 80, 0.1)), 0.2)
    assert (load.others_prefill, load.others_waiting, load.others_running) == (80, 1, 1)
    assert STALE_SECONDS == 2.0
    assert load.pending(0.2) <= 80


def test_the_clock_counts_own_charges_and_the_rises_of_others() -> None:
    load = Load()
    load.apply(told(a=(0, 0, 0, 1000, 0.0)), 0.0)
    first = load.clock
    load.apply(told(a=(0, 0, 0, 1400, 0.0)), 0.2)
    assert load.clock == first + 400
    Share(load, 250)
    assert load.clock == first + 650
    load.apply(told(a=(0, 0, 0, 1400, 0.0)), 0.4)
    assert load.clock == first + 650, "told twice, counted once"


def test_a_gateway_that_restarts_turns_no_clock_back() -> None:
    load = Load()
    load.apply(told(a=(0, 0, 0, 90_000, 0.0)), 0.0)
    before = load.clock
    load.apply(told(a=(0, 0, 0, 0, 0.0)), 0.2)
    assert load.clock == before
    load.apply(told(a=(0, 0, 0, 700, 0.0)), 0.4)
    assert load.clock == before + 700, "what it charges after its restart counts at once"


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 10_000)), max_size=12), st.integers(0, 3000))
def test_the_clock_never_falls(rounds: list[dict[str, int]], own: int) -> None:
    load, before = Load(), 0
    for now, words in enumerate(rounds):
        load.apply({name: (LoadReport(0, 0, 0, total), 0.0) for name, total in words.items()}, float(now))
        Share(load, own).end()
        assert load.clock >= before + max(LEAST_CHARGE, own)
        before = load.clock


@pytest.mark.parametrize(
    ("told", "charged"),
    [((), 700), ((700,), 700), ((100,), 700), ((1200,), 1200), ((900, 1200, 800), 1200), ((-5,), 700)],
)
def test_what_was_read_beyond_what_was_expected_ages_the_cache_once(told: tuple[int, ...], charged: int) -> None:
    """However late it is told; what is outstanding is as it was."""
    load = Load()
    other, share = Share(load, 50), Share(load, 700)
    share.first_token()
    for tokens in told[:1]:
        share.read(tokens)
    assert counters(load) == (50, 1, 2)
    share.end()
    for tokens in told[1:]:
        share.read(tokens)
    assert (load.charged, load.clock) == (50 + charged, 50 + charged)
    other.end()
    assert counters(load) == (0, 0, 0)


def test_others_hear_of_what_was_read() -> None:
    """A gateway tells all it ever charged: a miss here ages the cache there, too."""
    here, there = Load(), Load()
    share = Share(here, 100)
    there.apply({"here": (here.report(), 0.0)}, 0.0)
    share.read(5000)
    there.apply({"here": (here.report(), 0.0)}, 0.2)
    assert (here.clock, there.clock, there.others_prefill) == (5000, 4900, 100)


def test_what_is_told_is_our_own_part_alone() -> None:
    load = Load()
    load.apply(told(a=(500, 2, 3, 500, 0.0)), 0.0)
    share = Share(load, 120)
    Share(load, 30).first_token()
    assert load.report() == LoadReport(120, 1, 2, 150)
    share.end()
    assert load.report() == LoadReport(0, 0, 1, 150)


def test_what_is_kept_of_gateways_that_come_and_go_is_bounded() -> None:
    """Each restart is a new name."""
    load = Load()
    for n in range(3000):
        load.apply({f"gateway-{n}": (LoadReport(1, 1, 1, 1), 0.0)}, float(n))
    assert len(load._known) <= 1024
