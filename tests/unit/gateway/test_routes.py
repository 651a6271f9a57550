"""From a model name to targets: each at most once, in proportion, healthy ones first, and every count back to zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from harness.clock import FixedClock
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call
from backends.body import Body
from gateway.config import TargetSpec, Timeouts, parse_table
from gateway.core.errors import NoRoute
from gateway.health import Breaker
from gateway.routes import (
    POLICIES,
    RETRY_FLOOR,
    LeastTokens,
    Load,
    Policy,
    RetryBudget,
    RoundRobin,
    Route,
    Routes,
    Share,
    Target,
    build,
)

CALL = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'))


def target(name: str, weight: float = 1.0, clock: FixedClock | None = None) -> Target:
    spec = TargetSpec(name=name, backend="vllm", url=f"http://{name}/", weight=weight)
    return Target(spec, f"http://{name}/", object(), Timeouts(), Breaker(name, clock or FixedClock()))


def eject(*targets: Target) -> None:
    for each in targets:
        for _ in range(5):
            each.breaker.failed()
        assert not each.breaker.closed


def route(*tiers: Sequence[Target], attempts: int = 3, policy: Policy | None = None) -> Route:
    return Route("r", tiers, policy or LeastTokens(), attempts)


def names(of: Route) -> list[str]:
    return [each.name for each in of.candidates(CALL)]


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> Policy:
    return POLICIES[request.param]()


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.sampled_from([None, True, False])), max_size=4), min_size=1, max_size=3
    ),
    st.integers(1, 3),
    st.sampled_from(sorted(POLICIES)),
)
def test_each_candidate_comes_at_most_once(
    shape: list[list[tuple[bool, bool | None]]], attempts: int, policy: str
) -> None:
    tiers = [[target(f"{tier}-{n}") for n in range(len(each))] for tier, each in enumerate(shape)]
    for tier, states in zip(tiers, shape, strict=True):
        for each, (healthy, up) in zip(tier, states, strict=True):
            each.up = up
            if not healthy:
                eject(each)
    of = Route("r", tiers, POLICIES[policy](), attempts)
    found = names(of)
    assert len(found) == len(set(found)) <= attempts
    assert bool(found) == any(tiers), "the last target of a route is never ejected"
    healthy = {each.name for tier in tiers for each in tier if each.breaker.closed}
    if healthy:
        assert set(found) <= healthy and len(found) == min(attempts, len(healthy))


def test_a_tier_is_used_up_before_the_next() -> None:
    of = route([target("a"), target("b")], [target("c")])
    assert sorted(names(of)[:2]) == ["a", "b"] and names(of)[2] == "c"


def test_the_fallback_serves_while_all_targets_are_ejected() -> None:
    a, b = target("a"), target("b")
    of = route([a, b], [target("c")])
    eject(a, b)
    assert names(of) == ["c"]


def test_targets_that_probes_call_down_come_after_a_healthy_fallback() -> None:
    a = target("a")
    a.up = False
    assert names(route([a], [target("c")])) == ["c", "a"]


def test_a_probe_alone_does_not_close_a_route() -> None:
    a = target("a")
    a.up = False
    assert names(route([a])) == ["a"]


def test_the_last_target_is_tried_even_while_ejected() -> None:
    a, b = target("a"), target("b")
    eject(a, b)
    assert len(names(route([a, b]))) == 1


def test_a_target_that_fails_for_this_call_is_not_picked_again() -> None:
    a, b = target("a"), target("b")
    picked = []
    for each in route([a, b]).candidates(CALL):
        picked.append(each.name)
        eject(each)
    assert sorted(picked) == ["a", "b"]


def budget(of: Route) -> tuple[int, int]:
    return of._budget.in_flight, of._budget.retrying


def test_the_retry_budget_returns_to_zero_however_a_call_ends() -> None:
    of = route([target(name) for name in "abc"])
    for steps in range(5):
        candidates = of.candidates(CALL)
        for _ in range(steps):
            next(candidates, None)
        if steps == 2:
            assert budget(of) == (1, 1)
        candidates.close()
        assert budget(of) == (0, 0), f"after {steps} steps"
    with pytest.raises(RuntimeError):
        for each in of.candidates(CALL):
            raise RuntimeError(each.name)
    assert budget(of) == (0, 0)


def test_a_policy_that_fails_leaks_nothing() -> None:
    class Broken:
        def pick(self, call: Call, candidates: Sequence[Target]) -> Target:
            if len(candidates) < 2:
                raise RuntimeError("broken")
            return candidates[0]

    of = route([target("a"), target("b")], policy=Broken())
    with pytest.raises(RuntimeError):
        names(of)
    assert budget(of) == (0, 0)


def test_retries_are_a_small_part_of_the_load() -> None:
    of = route([target(name) for name in "abc"])
    calls = [of.candidates(CALL) for _ in range(100)]
    for each in calls:
        next(each)
    retried = sum(next(each, None) is not None for each in calls)
    assert retried == 20
    for each in calls:
        each.close()
    assert budget(of) == (0, 0)


def test_a_few_retries_are_always_allowed() -> None:
    of = route([target("a"), target("b")])
    calls = [of.candidates(CALL) for _ in range(5)]
    for each in calls:
        next(each)
    assert sum(next(each, None) is not None for each in calls) == RETRY_FLOOR
    assert RetryBudget().allows()


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 7.0]), min_size=2, max_size=5))
def test_round_robin_is_smooth_and_in_proportion(weights: list[float]) -> None:
    targets = [target(f"t{n}", weight) for n, weight in enumerate(weights)]
    policy, total = RoundRobin(), sum(weights)
    counts: Counter[str] = Counter()
    for number in range(1, 301):
        counts[policy.pick(CALL, targets).name] += 1
        for each in targets:
            assert abs(counts[each.name] - number * each.weight / total) <= len(weights)


@pytest.mark.parametrize("reading", [True, False])
@given(weights=st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0]), min_size=2, max_size=4))
def test_least_tokens_keeps_running_calls_in_proportion(weights: list[float], reading: bool) -> None:
    """Whether the targets still read their prompts or have begun to answer."""
    targets = [target(f"t{n}", weight) for n, weight in enumerate(weights)]
    policy, total = LeastTokens(), sum(weights)
    for _ in range(120):
        share = policy.pick(CALL, targets).take(CALL)
        if not reading:
            share.first_token()
    for each in targets:
        assert each.load.running == pytest.approx(120 * each.weight / total, abs=len(weights))


def test_least_tokens_prefers_what_has_less_to_read() -> None:
    a, b = target("a"), target("b")
    long = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":["' + b"x" * 4000 + b'"]}'))
    policy = LeastTokens()
    share = a.take(long)
    assert {policy.pick(CALL, [a, b]).name for _ in range(4)} == {"b"}
    share.first_token()
    assert {policy.pick(CALL, [a, b]).name for _ in range(4)} == {"b"}, "it still runs"
    share.end()
    assert {policy.pick(CALL, [a, b]).name for _ in range(4)} == {"a", "b"}


def test_equal_targets_take_turns(policy: Policy) -> None:
    targets = [target(name) for name in "abcd"]
    counts = Counter(policy.pick(CALL, targets).name for _ in range(400))
    assert set(counts.values()) == {100}


def test_a_policy_picks_among_the_candidates_only(policy: Policy) -> None:
    targets = [target(name, weight) for name, weight in (("a", 5.0), ("b", 1.0), ("c", 1.0))]
    for turn in range(60):
        left = targets[turn % 3 :]
        assert policy.pick(CALL, left) in left


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["take", "first", "end", "end"])), max_size=40))
def test_load_returns_to_zero_and_never_falls_below(steps: list[tuple[int, str]]) -> None:
    load = Load()
    shares: dict[int, Share] = {}
    for number, step in steps:
        if step == "take" and number not in shares:
            shares[number] = Share(load, 10 + number)
        elif number in shares:
            share = shares[number]
            share.first_token() if step == "first" else share.end()
        assert load.prefill >= 0 and load.waiting >= 0 and load.running >= 0
    for share in shares.values():
        for _ in range(2):
            share.end()
            share.first_token()
    assert (load.prefill, load.waiting, load.running) == (0, 0, 0)


def test_a_share_ends_its_prefill_at_the_first_token() -> None:
    each = target("a")
    share = each.take(CALL)
    assert (each.load.prefill, each.load.waiting, each.load.running) == (len(CALL.body.raw) // 4, 1, 1)
    share.first_token()
    share.first_token()
    assert (each.load.prefill, each.load.waiting, each.load.running) == (0, 0, 1)


def test_the_smallest_call_has_a_load_too() -> None:
    each = target("a")
    share = each.take(Call("c", "completions", "m", Body(b"{}")))
    assert (each.load.prefill, each.load.waiting) == (1, 1)
    share.end()
    assert (each.load.prefill, each.load.waiting, each.load.running) == (0, 0, 0)


TABLE = """
routes:
  one: {aliases: [uno, "o*"], policy: round-robin, retry: {attempts: 1}, targets: [{name: a, backend: vllm, url: "http://a/"}]}
  two:
    targets: [{name: b, backend: llamacpp, launch: {model: embedded}, model: m, api_key: "${K}"}]
    fallback: [{name: c, backend: tgi, url: "http://c"}]
    timeouts: {idle: 1s}
"""


@pytest.fixture
def routes() -> Routes:
    table, _ = parse_table(TABLE, "t", {"K": "key"})
    return build(table, {"b": "http://127.0.0.1:5"}, lambda name: name, lambda name: Breaker(name, FixedClock()))


def test_a_table_becomes_routes(routes: Routes) -> None:
    assert [each.name for each in routes] == ["one", "two"]
    assert list(routes.targets) == ["a", "b", "c"]
    b = routes.targets["b"]
    assert (b.address.url, b.address.model, b.address.api_key, b.adapter) == (
        "http://127.0.0.1:5",
        "m",
        "key",
        "llamacpp",
    )
    assert b.timeouts.idle == 1.0 and routes.targets["c"].timeouts.idle == 1.0
    assert routes.targets["a"].address.url == "http://a"
    assert names(routes.find("two", lambda *_: True)) == ["b", "c"]


def test_names_lead_to_routes(routes: Routes) -> None:
    for name, found in {"one": "one", "uno": "one", "other": "one", "two": "two"}.items():
        assert routes.find(name, lambda *_: True).name == found


def test_an_unknown_name_is_answered_with_those_the_key_may_use(routes: Routes) -> None:
    with pytest.raises(NoRoute) as caught:
        routes.find("three", lambda name, route: route == "one")
    assert "'three'" in caught.value.message and "one, uno" in caught.value.message
    assert "two" not in caught.value.message and caught.value.param == "model"
    with pytest.raises(NoRoute, match="none"):
        routes.find("x" * 5000, lambda *_: False)


def test_models_are_names_that_can_be_asked_for(routes: Routes) -> None:
    assert routes.models(lambda *_: True) == ["one", "uno", "two"]
    assert routes.models(lambda name, route: name == "uno") == ["uno"]
