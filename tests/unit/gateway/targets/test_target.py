"""What is known of one target, and what becomes of it when the table changes."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from harness.clock import FixedClock

from backends.api import Facts
from backends.capabilities import Capabilities
from gateway.config import FallbackSpec, TargetSpec, Timeouts
from gateway.targets.health import Breaker
from gateway.targets.target import KV_TOKENS, PREFILL_LIMIT, REST_SECONDS, UNBOUNDED, Target


def target(clock: FixedClock | None = None, spec: TargetSpec | None = None, timeouts: Timeouts | None = None) -> Target:
    clock = clock or FixedClock()
    spec = spec or TargetSpec(name="a", backend="vllm", url="http://a/")
    return Target(spec, "http://a/", Capabilities.of(object()), timeouts or Timeouts(), Breaker("a", clock), clock)  # type: ignore[arg-type]


def test_a_target_is_asked_as_its_table_says() -> None:
    strict, lenient = target().address, given(finish="lenient", usage_event=False).address
    assert (strict.lenient, strict.usage_event) == (False, True)
    assert (lenient.lenient, lenient.usage_event) == (True, False)


def given(**values: object) -> Target:
    return target(spec=TargetSpec(name="a", backend="vllm", url="http://a/", **values))  # type: ignore[arg-type]


def test_a_target_is_what_the_table_says() -> None:
    made = given(model="m", api_key="k", weight=2.5, canary=0.1, max_inflight=4, context=100, kv_tokens=200)
    assert (made.address.url, made.address.model, made.address.api_key) == ("http://a", "m", "k")
    assert (made.weight, made.canary, made.max_inflight, made.context, made.kv_tokens) == (2.5, 0.1, 4, 100, 200)
    assert (made.tier, made.up, made.order, made.since) == (0, None, "open", -inf)
    assert target(spec=FallbackSpec(name="a", backend="vllm", url="http://a/", tier=3)).tier == 3


def test_nothing_said_is_no_bound() -> None:
    made = target()
    assert (made.context, made.kv_tokens, made.max_inflight, made.canary) == (UNBOUNDED, KV_TOKENS, None, 0.0)


def test_what_it_is_given_to_read_is_bounded_however_long_calls_may_wait() -> None:
    for seconds in (3.0, 60.0, 600.0):
        assert target(timeouts=Timeouts(first_output=seconds, whole=seconds)).prefill_limit == PREFILL_LIMIT == 480_000


def test_of_two_rests_the_longer_holds() -> None:
    clock = FixedClock(100.0)
    made = target(clock)
    made.rest(10.0)
    made.rest(3.0, "full")
    assert (made.resting, made.resting_until) == ("resting", 110.0)
    clock.advance(9.0)
    made.rest(3.0, "full")
    assert (made.resting, made.resting_until) == ("full", 112.0)


def test_a_rest_without_a_length_is_short() -> None:
    made = target(FixedClock(100.0))
    made.rest(None)
    assert made.resting_until == 100.0 + REST_SECONDS
    made.rest(0.0)
    assert made.resting_until == 100.0 + REST_SECONDS


def test_no_server_can_take_itself_away_for_long() -> None:
    made = target(FixedClock(100.0))
    made.rest(3600.0)
    assert made.resting_until == 130.0


def test_the_table_goes_before_what_the_engine_tells() -> None:
    made = given(context=100)
    made.learned(Facts(context=4096, kv_tokens=50_000))
    assert (made.context, made.kv_tokens, made.facts) == (100, 50_000, Facts(context=4096, kv_tokens=50_000))
    made.learned(Facts())
    assert (made.context, made.kv_tokens) == (100, KV_TOKENS)
    other = given(kv_tokens=7)
    other.learned(Facts(context=4096, kv_tokens=50_000))
    assert (other.context, other.kv_tokens) == (4096, 7)
    other.learned(Facts())
    assert other.context == UNBOUNDED, "the engine tells it no longer"
    other.learned(Facts(context=4096, prompt=1024))
    assert other.prompt_limit == 1024
    other.learned(Facts(context=4096))
    assert other.prompt_limit == UNBOUNDED


@pytest.mark.parametrize(
    ("steps", "slow"),
    [
        ((lambda t: t.probed(""),), False),
        ((lambda t: t.probed("away"),), False),
        ((lambda t: t.probed("away"), lambda t: t.probed("still away")), False),
        ((lambda t: t.probed("away"), lambda t: t.probed("")), True),
        ((lambda t: t.ordered("drained", 1),), False),
        ((lambda t: t.ordered("drained", 1), lambda t: t.ordered("ejected", 2)), False),
        ((lambda t: t.ordered("ejected", 1), lambda t: t.ordered("open", 1)), True),
        ((lambda t: t.ordered("open", 1),), False),
        ((lambda t: t.sleeps(False),), False),
        ((lambda t: t.sleeps(True),), False),
        ((lambda t: t.sleeps(True), lambda t: t.sleeps(False)), True),
    ],
)
def test_it_begins_slowly_when_it_is_back(steps: tuple[Callable[[Target], None], ...], slow: bool) -> None:
    clock = FixedClock(100.0)
    made = target(clock)
    for step in steps:
        clock.advance(1.0)
        step(made)
    assert made.since == (clock() if slow else -inf)


def test_a_probe_tells_why() -> None:
    made = target()
    made.probed("no route to host")
    assert (made.up, made.why) == (False, "no route to host")
    made.probed("")
    assert (made.up, made.why) == (True, "")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.rest(1.0),
        lambda t: t.ordered("drained", 1),
        lambda t: t.probed("away"),
        lambda t: t.sleeps(True),
        lambda t: t.miss(),
        lambda t: t.learned(Facts(prompt=5)),
        lambda t: t.failed(False),
        lambda t: t.changed(),
    ],
)
def test_whatever_happens_to_it_it_must_be_looked_at_again(change: Callable[[Target], None]) -> None:
    made = target()
    made.unsure.clear()
    change(made)
    assert made.unsure == {made}


def test_its_successor_knows_all_that_it_knew() -> None:
    clock = FixedClock(100.0)
    old = target(clock)
    old.ordered("drained", 3)
    old.probed("away")
    old.rest(10.0, "full")
    old.learned(Facts(context=4096, kv_tokens=50_000, prompt=1024))
    old.sleeps(True)
    old.attempts, old.since = 17, 90.0
    new = target(clock)
    new.inherit(old)
    kept = ("order", "order_version", "up", "why", "asleep", "resting", "resting_until", "facts", "attempts")
    for name in (*kept, "since", "prompt_limit"):
        assert getattr(new, name) == getattr(old, name), name
    assert (new.context, new.kv_tokens) == (4096, 50_000) and new.unsure == {new}


def test_its_successors_learn_what_calls_that_it_still_has_find_out() -> None:
    clock = FixedClock(100.0)
    old, new, newest = target(clock), target(clock), target(clock)
    new.inherit(old)
    newest.inherit(new)
    newest.unsure.clear()
    old.miss()
    assert newest.missed and newest.unsure == {newest}
    newest.unsure.clear()
    old.rest(10.0)
    assert (newest.resting, newest.resting_until) == ("resting", 110.0) and newest.unsure == {newest}
    newest.probed("")
    assert not newest.missed


def test_what_the_new_table_says_goes_before_what_was_told() -> None:
    old = target()
    old.learned(Facts(context=4096, kv_tokens=50_000))
    new = given(context=100)
    new.inherit(old)
    assert (new.context, new.kv_tokens) == (100, 50_000)
