"""One attempt at one target: what it adds to the load, what it tells of its end, and that all is given back once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from harness.clock import FixedClock
from unit.gateway.routing.building import PROMPT, World, eject, one, targets, virtual
from unit.gateway.routing.test_tier import Told

from backends.api import Usage
from gateway.core.errors import (
    ContextTooLong,
    Disconnected,
    GatewayError,
    NoTarget,
    QueueFull,
    QueueTimeout,
    Rejected,
    Unreachable,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
)
from gateway.routing import Attempt
from gateway.routing.policies.api import Prompt, Score
from gateway.targets.target import KV_TOKENS

LONG = Prompt(1000)


def place(of: World, prompt: Prompt = LONG, score: Score | None = None) -> Attempt:
    attempt = Attempt(of.route.tiers[0], score or Score(0, 0.0, reason="turn"), prompt)
    attempt.begin()
    return attempt


@pytest.fixture
def of() -> World:
    return World(one("a", "b"))


def counts(of: World) -> tuple[int, int, int]:
    load = of["a"].load
    return load.prefill, load.waiting, load.running


def test_what_is_cached_there_is_not_charged(of: World) -> None:
    place(of, LONG, Score(0, 0.0, cached=400))
    assert counts(of) == (600, 1, 1)


def test_its_load_goes_in_two_steps_each_once(of: World) -> None:
    attempt = place(of)
    attempt.first_token()
    attempt.first_token()
    assert counts(of) == (0, 0, 1)
    attempt.end()
    attempt.end()
    attempt.first_token()
    assert counts(of) == (0, 0, 0)
    of.idle()


def test_a_call_without_a_first_token_ends_wholly(of: World) -> None:
    place(of).end()
    assert counts(of) == (0, 0, 0)


def test_a_placement_that_came_to_nothing_leaves_no_mark() -> None:
    """Its slot was denied, or its client left: nothing has been sent, so no cache has changed."""
    told = Told()
    of = World(one("a", "b"), policy=told)
    eject(of["a"])
    assert isinstance(of.clock, FixedClock)
    of.clock.advance(10.0)
    load = of["a"].load
    before = load.charged, load.clock
    attempt = Attempt(of.route.tiers[0], Score(0, 0.0), LONG)
    assert counts(of) == (1000, 1, 1), "it holds its place meanwhile"
    attempt.end()
    attempt.end()
    assert counts(of) == (0, 0, 0) and (load.charged, load.clock) == before
    assert (of["a"].attempts, told.events, of["a"].breaker.closed) == (0, [], True)


def test_the_policy_hears_of_it_once_the_charge_is_there() -> None:
    told = Told()
    of = World(one("a", "b"), policy=told)
    attempt = place(of)
    assert told.events == [("placed", 0)]
    attempt.answered(Usage(1000, 5, 700))
    assert told.events[1:] == [("told", 700)]


def test_a_miss_ages_what_the_target_has_cached() -> None:
    """It was taken to have nothing of a prompt of 1,000 tokens; the prompt had 1,500, and 300 were there."""
    of = World(one("a", "b"))
    load, attempt = of["a"].load, place(of)
    attempt.first_token()
    attempt.answered(Usage(1500, 5, 300))
    assert (load.charged, load.clock, counts(of)) == (1200, 1200, (0, 0, 1))
    attempt.answered(Usage(1500, 5, 1400))
    attempt.end()
    assert (load.charged, load.clock) == (1200, 1200), "nothing becomes younger"
    of.idle()


@pytest.mark.parametrize("usage", [Usage(10**30, 5, 0), Usage(1000, 5, -(10**30)), Usage(-(10**30), 5, 10**30)])
def test_counts_that_cannot_be_age_a_cache_by_no_more_than_it_holds(usage: Usage) -> None:
    """The clock goes into tables and words of 64 bits."""
    of = World(one("a", "b"))
    for _ in range(3):
        attempt = place(of)
        attempt.answered(usage)
        attempt.end()
    assert 3000 <= of["a"].load.clock == of["a"].load.charged <= 3 * KV_TOKENS


@pytest.mark.parametrize("usage", [None, Usage(1000, 5)])
def test_a_target_that_tells_nothing_of_its_cache_teaches_nothing(usage: Usage | None) -> None:
    told = Told()
    of = World(one("a", "b"), policy=told)
    place(of).answered(usage)
    assert told.events == [("placed", 0)] and of["a"].load.clock == 1000


def test_attempts_are_counted(of: World) -> None:
    for _ in range(3):
        place(of).end()
    assert (of["a"].attempts, of["b"].attempts) == (3, 0)


def test_five_failures_eject_its_target(of: World) -> None:
    for _ in range(5):
        assert of["a"].breaker.closed
        attempt = place(of)
        attempt.failed(UpstreamFailed("500"))
        attempt.end()
    assert not of["a"].breaker.closed and of["b"].breaker.closed
    assert of.route.tiers[0].usable(PROMPT, of.clock()) == [1]


@pytest.mark.parametrize("good", [lambda p: p.answered(None), lambda p: p.refused(Rejected(400, "no"))])
def test_an_answer_and_a_refusal_of_the_call_both_tell_that_the_target_is_well(
    of: World, good: Callable[[Attempt], None]
) -> None:
    for number in range(9):
        attempt = place(of)
        good(attempt) if number == 4 else attempt.failed(Unreachable(""))
        attempt.end()
    assert of["a"].breaker.closed


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_target_that_works_again_comes_back_slowly_in_every_table(of: World, reloaded: bool) -> None:
    assert isinstance(of.clock, FixedClock)
    eject(of["a"])
    of.clock.advance(100)
    attempt = place(of)
    if reloaded:
        of.reload(one("a", "c"))
    attempt.answered(None)
    assert of["a"].breaker.closed and of["a"].since == of.clock()
    of.clock.advance(100)
    place(of).answered(None)
    assert of["a"].since == of.clock() - 100, "it is back already"
    if reloaded:
        of.reload(one("c"))
        attempt.answered(None)  # nobody's fault


def test_a_client_that_leaves_says_nothing_of_the_target(of: World) -> None:
    for number in range(5):
        attempt = place(of)
        if number != 2:
            attempt.failed(UpstreamFailed(""))
        attempt.end()
    assert of["a"].breaker.closed
    attempt = place(of)
    attempt.failed(UpstreamFailed(""))
    assert not of["a"].breaker.closed, "the failures before and after it were in a row"


@pytest.mark.parametrize(("told", "seconds"), [(None, 0.5), (7.0, 7.0), (0.0, 0.0)])
def test_a_target_that_sheds_load_rests_and_is_not_broken(of: World, told: float | None, seconds: float) -> None:
    assert isinstance(of.clock, FixedClock)
    for _ in range(20):
        attempt = place(of)
        attempt.failed(UpstreamBusy("429", retry_after=told))
        attempt.end()
    assert of["a"].breaker.closed
    assert (0 in of.route.tiers[0].usable(PROMPT, of.clock())) == (seconds == 0)
    of.clock.advance(seconds)
    assert of.route.tiers[0].usable(PROMPT, of.clock()) == [0, 1]


def test_one_call_tries_an_ejected_target_however_it_ends(of: World) -> None:
    assert isinstance(of.clock, FixedClock)
    eject(of["a"])
    of.clock.advance(10.0)
    trial, second = place(of), place(of)
    assert not of["a"].breaker.closed
    second.end()
    assert not of["a"].breaker.closed, "it was not the trial"
    trial.end()
    trial.end()
    assert of["a"].breaker.closed, "its client has left: another call may try"
    trial = place(of)
    trial.failed(UpstreamFailed(""))
    trial.end()
    of.clock.advance(19.9)
    assert not of["a"].breaker.closed, "twice as long"
    of.clock.advance(0.1)
    trial = place(of)
    trial.answered(None)
    trial.end()
    assert not of["a"].breaker.ejections


def test_a_first_token_ends_a_trial(of: World) -> None:
    """Its answer may take minutes: other calls need not wait for its end to know that the target works."""
    assert isinstance(of.clock, FixedClock)
    eject(of["a"])
    of.clock.advance(10.0)
    trial = place(of)
    trial.first_token()
    assert not of["a"].breaker.ejections
    trial.failed(UpstreamFailed("cut"))
    trial.end()
    assert of["a"].breaker.closed, "one failure"


@virtual
async def test_an_answer_that_comes_whole_has_its_prompt_read_in_the_usual_time() -> None:
    """Nobody sees its first token; the prompts of others wait for it no longer than a target needs to read."""
    of = World(one("a", "b"))
    attempts = [place(of, Prompt(8000, whole=True)), place(of, Prompt(4000, whole=True)), place(of, Prompt(80_000))]
    await asyncio.sleep(1.04)  # it is looked now and then
    assert counts(of) == (84_000, 2, 3)
    await asyncio.sleep(0.5)
    assert counts(of) == (80_000, 1, 3)
    for attempt in attempts:
        attempt.end()
    of.idle()


@virtual
async def test_a_whole_answer_that_ends_early_leaves_nothing_behind() -> None:
    of = World(one("a", "b"))
    attempt = place(of, Prompt(8000, whole=True))
    attempt.end()
    of.idle()
    later = place(of, Prompt(9000))
    await asyncio.sleep(2)
    assert counts(of) == (9000, 1, 1)
    later.end()


@pytest.mark.parametrize(
    ("error", "lost"),
    [(Unreachable(""), True), (Disconnected(""), True), (UpstreamFailed(""), False), (UpstreamBusy(""), False)],
)
def test_a_call_is_lost_when_its_target_is_gone(of: World, error: UpstreamError, lost: bool) -> None:
    attempt = place(of)
    attempt.failed(error)
    attempt.end()
    assert attempt.outcome.lost == lost


def test_a_slot_is_given_back_once(of: World) -> None:
    said: list[str] = []
    attempt = place(of)
    attempt.holds(lambda: said.append("given back"), lambda target: said.append(f"way at {target.name}"))
    assert of["a"].inflight.own == 1
    attempt.end()
    attempt.end()
    assert said == ["way at a", "given back"] and of["a"].inflight.own == 0


def test_a_room_is_told_of_when_there_is_one(of: World) -> None:
    """The load tells at the first token and at the end; a slot must be free by then or soon after."""
    told: list[tuple[int, int]] = []
    of["a"].load.freed.append(lambda load: told.append((load.waiting, load.running)))
    attempt = place(of)
    attempt.first_token()
    attempt.end()
    assert told == [(0, 1), (0, 0)]


def test_a_choice_says_what_the_record_needs(of: World) -> None:
    attempt = place(of)
    attempt.fallback, attempt.waited = "full", 1.5
    choice = attempt.choice
    assert (choice.policy, choice.reason, choice.fallback, choice.waited) == ("round-robin", "turn", "full", 1.5)


def test_the_client_is_told_which_way_its_call_went(of: World) -> None:
    attempt = place(of)
    attempt.number, attempt.more_headers = 2, [(b"x-trunkline-config", b"h")]
    assert attempt.headers == [
        (b"x-trunkline-target", b"a"),
        (b"x-trunkline-attempts", b"2"),
        (b"x-trunkline-config", b"h"),
    ]
    attempt.fallback = "down"
    attempt.number = 1
    assert attempt.headers[-1] == (b"x-trunkline-fallback", b"down")


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (None, "failed"),
        (NoTarget("x"), "no_target"),
        (ContextTooLong("x"), "too_long"),
        (QueueFull("x"), "full"),
        (QueueTimeout("x"), "full"),
    ],
)
def test_another_routes_target_is_asked_by_a_name_it_knows(refused: GatewayError | None, why: str) -> None:
    of = World(one(targets=[*targets("a"), *targets("b", model="its-own")]))
    a, b = place(of), place(of, LONG, Score(1, 0.0))
    for attempt in (a, b):
        attempt.stand_in("other", refused)
    assert (a.address.model, b.address.model) == ("other", "its-own")
    assert a.fallback == b.fallback == why
    assert of["a"].address.model is None, "the target itself is as it was"
