"""Why a target cannot take a call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.clock import FixedClock
from hypothesis import given
from hypothesis import strategies as st
from unit.gateway.routing.building import PROMPT, World, eject, one, table, targets

from backends.api import Facts
from gateway.core.errors import UpstreamFailed
from gateway.routing import Attempt
from gateway.routing.filters import BUSY, DOWN, EJECTED, FILTERS, LENIENCES, refusal
from gateway.routing.policies.api import Prompt, Score
from gateway.targets import Target
from gateway.targets.load import LoadReport, Share

State = Callable[[Target], object]

STATES: dict[str, State] = {
    "drained": lambda t: t.ordered("drained", 1),
    "ejected": lambda t: eject(t),
    "down": lambda t: t.probed("away"),
    "too_long": lambda t: t.learned(Facts(context=100)),
    "resting": lambda t: t.rest(10.0),
    "full": lambda t: fill(t),
}
LONG = Prompt(90, context=101)


def fill(target: Target) -> None:
    """As an attempt does."""
    Share(target.load, 480_000)


def world(**values: object) -> World:
    """A route with targets `a`, of these values, and `b`."""
    return World(one(targets=[*targets("a", **values), *targets("b")]))


@pytest.fixture
def a() -> Target:
    return world()["a"]


def test_a_target_of_which_nothing_is_known_takes_calls(a: Target) -> None:
    assert refusal(PROMPT, a, 0.0) is None
    a.probed("")
    assert refusal(PROMPT, a, 0.0) is None


@pytest.mark.parametrize("why", STATES)
def test_each_filter_says_its_word(a: Target, why: str) -> None:
    STATES[why](a)
    assert refusal(LONG, a, a._clock()) == why


def test_what_lasts_longest_is_said_first(a: Target) -> None:
    """An operator's order goes before what calls and probes say; only what waiting helps comes after the rest."""
    for why in reversed(STATES):
        STATES[why](a)
        assert refusal(LONG, a, a._clock()) == why
    assert frozenset(list(STATES)[-2:]) == BUSY


def test_operators_eject_too(a: Target) -> None:
    a.ordered("ejected", 1)
    assert refusal(PROMPT, a, 0.0) == "ejected"


def test_what_nobody_overlooks() -> None:
    """Probes may be wrong, and the last target is better than none; but a drained one must see no call."""
    assert LENIENCES == ((), (DOWN,), (DOWN, EJECTED))


@pytest.mark.parametrize("state", ["drained", "ejected"])
def test_an_operators_order_holds_whatever_is_overlooked(a: Target, state: str) -> None:
    a.ordered(state, 1)  # type: ignore[arg-type]
    assert all(refusal(PROMPT, a, 0.0, overlooked) is not None for overlooked in LENIENCES)


@pytest.mark.parametrize("why", STATES)
def test_what_is_overlooked_is_not_said(a: Target, why: str) -> None:
    STATES[why](a)
    assert (refusal(LONG, a, a._clock(), LENIENCES[2]) is None) == (why in ("down", "ejected"))


def test_a_call_that_fits_exactly_fits(a: Target) -> None:
    a.learned(Facts(context=100))
    assert refusal(Prompt(90, context=100), a, 0.0) is None
    assert refusal(Prompt(90, context=101), a, 0.0) == "too_long"


def test_a_bound_of_the_prompt_alone_counts_too(a: Target) -> None:
    a.learned(Facts(context=1000, prompt=100))
    assert refusal(Prompt(100, context=900, alone=100), a, 0.0) is None
    assert refusal(Prompt(101, context=900, alone=101), a, 0.0) == "too_long"
    assert refusal(Prompt(5000), a, 0.0) is None, "many prompts, each with a context of its own"


def test_a_server_that_has_put_its_model_away_is_down(a: Target) -> None:
    a.probed("")
    a.sleeps(True)
    assert refusal(PROMPT, a, 0.0) == "down"
    a.sleeps(False)
    assert refusal(PROMPT, a, 0.0) is None


def test_a_rest_ends() -> None:
    of = world()
    assert isinstance(of.clock, FixedClock)
    of["a"].rest(10.0)
    of.clock.advance(9.99)
    assert refusal(PROMPT, of["a"], of.clock()) == "resting"
    of.clock.advance(0.01)
    assert refusal(PROMPT, of["a"], of.clock()) is None


def test_the_ejected_one_is_tried_by_one_call_when_its_time_is_over() -> None:
    of = world()
    eject(of["a"])
    of.clock.advance(10.0)
    assert refusal(PROMPT, of["a"], of.clock()) is None
    trial = of["a"].breaker.attempt()
    assert trial and refusal(PROMPT, of["a"], of.clock()) == "ejected"
    of["a"].breaker.ended(trial)
    assert refusal(PROMPT, of["a"], of.clock()) is None


@pytest.mark.parametrize(("ours", "theirs", "full"), [(3, 0, False), (4, 0, True), (2, 1, False), (2, 2, True)])
def test_calls_of_all_gateways_fill_a_target(ours: int, theirs: int, full: bool) -> None:
    a = world(max_inflight=4)["a"]
    a.inflight.own, a.inflight.others = ours, theirs
    assert refusal(PROMPT, a, 0.0) == ("full" if full else None)


def test_calls_alone_fill_no_target_without_a_bound(a: Target) -> None:
    """An engine queues what it has no place for: that it is behind only its outstanding prompts tell."""
    for _ in range(1000):
        Share(a.load, 16).first_token()
    a.load.apply({"g": (LoadReport(0, 0, 1000, 0), 0.0)}, 0.0)
    assert refusal(PROMPT, a, 0.0) is None


def test_calls_of_another_target_on_the_same_server_do_not_fill_its_slots(a: Target) -> None:
    bounded = world(max_inflight=1)["a"]
    Share(bounded.load, 16)
    assert refusal(PROMPT, bounded, 0.0) is None


@pytest.mark.parametrize(("own", "full"), [(0, False), (1, True)])
def test_slots_that_others_wait_for_are_left_to_them_but_not_the_only_one(own: int, full: bool) -> None:
    a = world(max_inflight=4)["a"]
    a.inflight.own, a.inflight.others, a.inflight.reserve = own, 3 - own, 1
    assert refusal(PROMPT, a, 0.0) == ("full" if full else None)


@pytest.mark.parametrize(("running", "tokens", "full"), [(3, 479_999, False), (4, 100, True), (3, 480_000, True)])
def test_either_bound_fills_a_target(running: int, tokens: int, full: bool) -> None:
    a = world(max_inflight=4)["a"]
    a.inflight.own = running
    Share(a.load, tokens)
    assert refusal(PROMPT, a, 0.0) == ("full" if full else None)


def test_a_target_is_full_that_has_too_much_to_read(a: Target) -> None:
    now = a._clock()
    share = Share(a.load, 479_999)
    assert refusal(PROMPT, a, now) is None
    a.load.apply({"g": (LoadReport(1, 1, 1, 1), 0.0)}, now)
    assert refusal(PROMPT, a, now) == "full", "what other gateways sent counts"
    assert refusal(PROMPT, a, now + 1.0) is None, "by now it has read some"
    share.first_token()
    assert refusal(PROMPT, a, now) is None


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 64])
def test_low_priority_leaves_three_tenths_free(bound: int) -> None:
    low, taken = Prompt(10, part=0.7), 0
    a = world(max_inflight=bound)["a"]
    while refusal(low, a, 0.0) is None:
        taken = a.inflight.own = taken + 1
    assert taken == max(1, -(-7 * bound // 10))
    assert (refusal(PROMPT, a, 0.0) is None) == (taken < bound)


def test_low_priority_leaves_three_tenths_of_the_reading_too(a: Target) -> None:
    share = Share(a.load, 336_000)
    assert refusal(Prompt(10, part=0.7), a, 0.0) == "full" and refusal(PROMPT, a, 0.0) is None
    share.end()
    assert refusal(Prompt(10, part=0.7), a, 0.0) is None


CHANGES: dict[str, State] = {
    **{why: state for why, state in STATES.items() if why != "too_long"},
    "asleep": lambda t: t.sleeps(True),
    "up": lambda t: t.probed(""),
    "open": lambda t: t.ordered("open", 2),
    "others": lambda t: t.load.apply({"g": (LoadReport(10**9, 9, 9, 10**9), 0.0)}, t._clock()),
    "no others": lambda t: t.load.apply({}, t._clock()),
    "a bound of prompts": lambda t: t.learned(Facts(prompt=5)),
    "a call of half its room": lambda t: Share(t.load, 239_999),
    "a small call": lambda t: Share(t.load, 16),
    "a miss": lambda t: t.miss(),
    "healed": lambda t: t.breaker.succeeded(),
    "nothing": lambda t: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_counts_for_the_next_call(change: str) -> None:
    for prompt in (PROMPT, Prompt(10, alone=6)):
        of = world()
        tier, a = of.route.tiers[0], of["a"]
        assert tier.usable(prompt, of.clock()) == [0, 1]
        CHANGES[change](a)
        fits = all(each.refuses(prompt, a, of.clock()) is None for each in FILTERS)
        assert (0 in tier.usable(prompt, of.clock())) == fits


@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=30), st.booleans())
def test_what_need_not_be_asked_would_have_said_yes(changes: list[str], bounded: bool) -> None:
    """A tier skips the filters of targets of which it is sure: nothing that happens may be lost on it."""
    of = world(**({"max_inflight": 2} if bounded else {}))
    tier, a = of.route.tiers[0], of["a"]
    for change in changes:
        CHANGES[change](a)
        for prompt in (PROMPT, Prompt(10, alone=6)):
            fits = all(each.refuses(prompt, a, of.clock()) is None for each in FILTERS)
            assert (0 in tier.usable(prompt, of.clock())) == fits, change


@pytest.mark.parametrize("who", ["another route", "the table before"])
def test_what_calls_do_by_another_way_to_the_same_server_counts(who: str) -> None:
    """Another route lists it too, or the call began before a reload: the load and the breaker are the same."""
    of = World(table(r={"targets": targets("a", "b")}, other={"targets": targets("c", url="http://a")}))
    there = of.routes.get("other") if who == "another route" else of.route
    if who == "the table before":
        of.reload(one("a", "b"))
    assert there is not None
    tier = of.route.tiers[0]
    assert tier.usable(PROMPT, of.clock()) == [0, 1]
    attempt = Attempt(there.tiers[0], Score(0, 0.0), Prompt(500_000))
    attempt.begin()
    assert tier.usable(PROMPT, of.clock()) == [1], "it has too much to read"
    attempt.end()
    assert tier.usable(PROMPT, of.clock()) == [0, 1]
    if who == "the table before":
        for _ in range(5):
            attempt.failed(UpstreamFailed(""))
        assert tier.usable(PROMPT, of.clock()) == [1], "it is ejected"
