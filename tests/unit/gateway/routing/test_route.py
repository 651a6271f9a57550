"""One call's way through a route: each target at most once, the best tier first, and who is left when none is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.gateway.routing.building import PROMPT, World, eject, one, targets, virtual

from backends.api import Facts
from gateway.core.errors import NoTarget, Unreachable, UpstreamFailed
from gateway.routing.policies.api import Candidate, Prompt, Score
from gateway.routing.policies.registry import installed
from gateway.routing.retry_budget import RETRY_FLOOR, RetryBudget
from gateway.targets.load import Share

POLICIES = sorted(installed())
STATES = ("well", "up", "down", "ejected", "drained", "out")


def tiers(*names: Sequence[str], attempts: int = 3, **route: object) -> World:
    """A route with these targets in tiers."""
    first, *rest = names
    fallback = [{**each, "tier": number} for number, tier in enumerate(rest, 1) for each in targets(*tier)]
    return World(one(*first, fallback=fallback, retry={"attempts": attempts}, **route))


def put(of: World, name: str, state: str) -> None:
    target = of[name]
    match state:
        case "up":
            target.probed("")
        case "down":
            target.probed("away")
        case "ejected":
            eject(target)
        case "drained":
            target.ordered("drained", 1)
        case "out":
            target.ordered("ejected", 1)


@given(
    st.lists(st.lists(st.sampled_from(STATES), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from(POLICIES),
)
@virtual
async def test_each_target_is_tried_at_most_once_the_best_first(
    shape: list[list[str]], attempts: int, policy: str
) -> None:
    names = [[f"t{tier}-{n}" for n in range(len(states))] for tier, states in enumerate(shape)]
    of = tiers(*names, attempts=attempts, policy=policy)
    states = {
        name: state for tier, each in zip(names, shape, strict=True) for name, state in zip(tier, each, strict=True)
    }
    for name, state in states.items():
        put(of, name, state)
    usable = {name for name, state in states.items() if state not in ("drained", "out")}
    if not usable:
        with pytest.raises(NoTarget):
            await of.tried()
        return of.idle()
    found = await of.tried()
    assert len(found) == len(set(found)) <= 6 and set(found) <= usable
    asked = Counter(of[name].tier for name in found)
    assert all(times <= attempts for times in asked.values())
    ranks = [("ejected" in states[name], "down" in states[name], name[:2]) for name in found]
    best = sorted(("ejected" in states[name], "down" in states[name], name[:2]) for name in usable)
    assert ranks[0] == best[0] and ranks == sorted(ranks)
    healthy = Counter(of[name].tier for name in usable if states[name] != "ejected")
    asking = sum(min(attempts, targets) for targets in healthy.values())
    assert len(found) == min(6, max(1, asking)), "only a first attempt goes to an ejected target"
    of.idle()


@virtual
async def test_a_tier_is_used_up_before_the_next() -> None:
    found = await tiers("ab", "c").tried()
    assert sorted(found[:2]) == ["a", "b"] and found[2] == "c"


@pytest.mark.parametrize(("attempts", "found"), [(1, "ace"), (2, "abcde"), (3, "abcde")])
@virtual
async def test_to_go_down_a_tier_costs_no_attempt(attempts: int, found: str) -> None:
    assert "".join(await tiers("ab", "cd", "e", attempts=attempts).tried()) == found


@virtual
async def test_six_targets_are_asked_at_most() -> None:
    assert "".join(await tiers("abc", "de", "fg", "h").tried()) == "abcdef"


@virtual
async def test_tiers_are_asked_in_the_order_of_their_numbers() -> None:
    of = World(one("a", fallback=[*targets("d", tier=7), *targets("c", tier=2)], retry={"attempts": 3}))
    assert await of.tried() == ["a", "c", "d"]
    assert [of[name].tier for name in "acd"] == [0, 2, 7]


@pytest.mark.parametrize(
    ("states", "why"),
    [
        (["ejected", "ejected", "down"], "ejected"),
        (["down", "down", "drained"], "down"),
        (["drained", "drained", "drained"], "drained"),
        (["full", "full", "resting"], "full"),
        (["resting", "resting", "full"], "resting"),
        (["short", "short", "short"], "too_long"),
    ],
)
@virtual
async def test_a_fallback_says_what_most_of_the_better_targets_lack(states: list[str], why: str) -> None:
    of = tiers("abc", "d")
    for name, state in zip("abc", states, strict=True):
        put(of, name, state)
        if state == "full":
            Share(of[name].load, 10**6)
        elif state == "resting":
            of[name].rest(1.0)
        elif state == "short":
            of[name].learned(Facts(context=5))
    calls, attempt = await of.first()
    assert (attempt.target.name, attempt.fallback) == ("d", why)
    await calls.aclose()


@virtual
async def test_a_fallback_after_failures_says_so() -> None:
    of, told = tiers("ab", "c"), []
    async for attempt in of.attempts():
        told.append((attempt.target.tier, attempt.fallback))
        attempt.failed(UpstreamFailed(""))
    assert told == [(0, ""), (0, ""), (1, "failed")]


@virtual
async def test_a_target_that_fails_for_this_call_is_not_picked_again_though_it_is_the_last() -> None:
    of = tiers("a")
    assert await of.tried() == ["a"]
    of["a"].probed("away")
    assert await of.tried() == ["a"], "a probe alone closes no route"


@virtual
async def test_a_drained_target_gets_no_call_whatever_happens_to_the_others() -> None:
    of = tiers("ab", attempts=3)
    of["a"].ordered("drained", 1)
    for state in ("well", "down", "ejected", "drained"):
        put(of, "b", state)
        for _ in range(5):
            try:
                assert "a" not in await of.tried()
            except NoTarget as error:
                assert state == "drained" and error.status == 503 and error.retry_after == 1
    assert of["a"].attempts == 0


def test_a_few_retries_are_always_allowed() -> None:
    budget = RetryBudget()
    budget.retrying = RETRY_FLOOR - 1
    assert budget.allows()
    budget.retrying = RETRY_FLOOR
    assert not budget.allows()


@pytest.mark.parametrize(("calls", "retries"), [(5, 3), (100, 20)])
@virtual
async def test_retries_are_a_small_part_of_the_load(calls: int, retries: int) -> None:
    of = tiers("abc")
    started = [(await of.first())[0] for _ in range(calls)]
    retried = [await anext(each, None) is not None for each in started]
    assert sum(retried) == retries
    for each in started:
        await each.aclose()
    of.idle()


@virtual
async def test_where_no_retry_is_allowed_the_next_tier_is_asked_which_costs_none() -> None:
    of = tiers("ab", "cd", attempts=2)
    started = [await of.first() for _ in range(RETRY_FLOOR + 5)]
    second = [await anext(calls) for calls, _ in started]
    assert [attempt.target.tier for attempt in second] == [0] * RETRY_FLOOR + [1] * 5
    assert of.route.retries.retrying == RETRY_FLOOR
    for calls, _ in started[:RETRY_FLOOR]:
        assert (await anext(calls)).target.tier == 1
    assert of.route.retries.retrying == 0, "their retries are over"
    for calls, _ in started:
        await calls.aclose()
    of.idle()


@virtual
async def test_a_call_whose_target_is_gone_is_no_retry() -> None:
    """It doubles nothing: nobody works on it any more. Only its attempts and its targets are bounded."""
    of = tiers("abc")
    started = [await of.first() for _ in range(8)]
    for calls, attempt in started:
        attempt.failed(Unreachable("away"))
        assert await anext(calls, None) is not None
        assert of.route.retries.retrying == 0
        of.held.append((calls, attempt))
    for calls, _ in started:
        await calls.aclose()
    of.idle()


@virtual
async def test_the_budget_is_given_back_however_a_call_ends() -> None:
    of = tiers("abc")
    for steps in range(5):
        calls = of.attempts()
        for _ in range(steps):
            await anext(calls, None)
        if steps == 2:
            assert (of.route.retries.in_flight, of.route.retries.retrying) == (1, 1)
        await calls.aclose()
        of.idle()
    calls = of.attempts()
    await anext(calls)
    with pytest.raises(ZeroDivisionError):
        await calls.athrow(ZeroDivisionError())
    of.idle()


@virtual
async def test_a_policy_that_fails_leaks_nothing() -> None:
    class Broken:
        def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
            return [Score(place, 0.0) for place in usable]

        def pick(self, scores: Sequence[Score]) -> Score:
            if len(scores) < 3:
                raise ZeroDivisionError
            return scores[0]

    of = World(one("a", "b", "c", retry={"attempts": 3}), policy=Broken())
    calls, _ = await of.first()
    with pytest.raises(ZeroDivisionError):
        await anext(calls)
    of.idle()


def test_a_closed_route_hears_of_no_room() -> None:
    of = World(one("a", fallback=targets("b")))
    loads = [target.load for target in of.routes.targets.values()]
    assert all((len(load.freed), len(load.changed)) == (1, 1) for load in loads)
    of.route.close()
    of.route.close()
    assert not any(load.freed or load.changed for load in loads)


def test_a_prompt_needs_keys_only_where_there_is_a_choice() -> None:
    assert not World(one("a", fallback=targets("b"))).route.keyed
    assert World(one("a", "b")).route.keyed
    assert World(one("a", fallback=targets("b", "c"))).route.keyed
    assert PROMPT.conversation is None
