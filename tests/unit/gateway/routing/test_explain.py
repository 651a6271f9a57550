"""An explanation says what the next call would meet, and changes nothing."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.gateway.routing.building import World, call, eject, key, one, table, targets, virtual

from backends.api import Facts
from gateway.core.errors import GatewayError
from gateway.routing.explain import Candidacy, explained
from gateway.routing.policies.registry import installed
from gateway.targets.load import LoadReport, Share

POLICIES = sorted(installed())


def explain(of: World, model: str = "r", tokens: int = 100, **fields: object) -> list[Candidacy]:
    route = of.routes.find(model, lambda *_: True)
    return of.routes.explain(route, lambda each: of.routes.read(each, call(model, **fields), {}, key(), tokens))


def picked(candidacies: list[Candidacy]) -> list[str]:
    return [each.target for each in candidacies if each.picked]


def test_each_target_of_each_tier_and_route_is_told_of() -> None:
    of = World(
        table(
            r={"targets": targets("a", "b"), "fallback": targets("c", tier=2), "fallback_route": "s"},
            s={"policy": "round-robin", "targets": targets("d", weight=2)},
        )
    )
    of["a"].ordered("drained", 1)
    Share(of["b"].load, 500)
    of["b"].load.apply({"g": (LoadReport(100, 1, 4, 100), 0.0)}, of.clock())
    found = explain(of)
    assert [(each.route, each.tier, each.target) for each in found] == [
        ("r", 0, "a"),
        ("r", 0, "b"),
        ("r", 1, "c"),
        ("s", 0, "d"),
    ]
    assert [each.policy for each in found] == ["home-cost"] * 3 + ["round-robin"]
    a, b, c, d = found
    assert (a.refused, a.cost, a.picked) == ("drained", None, False)
    assert (b.refused, b.picked, b.running, b.waiting, b.pending) == ("", True, 5, 2, 600)
    assert (c.picked, d.picked, d.weight) == (False, False, 2.0)
    assert c.cost is not None, "a worse tier is looked at, too"


@given(
    st.sampled_from(POLICIES),
    st.lists(st.sampled_from(["well", "down", "ejected", "drained", "full"]), min_size=1, max_size=4),
    st.lists(st.integers(0, 10_000), min_size=4, max_size=4),
    st.integers(0, 5),
)
@virtual
async def test_the_next_call_goes_where_the_explanation_says(
    policy: str, states: list[str], loads: list[int], number: int
) -> None:
    names = [f"t{n}" for n in range(len(states))]
    of = World(one(*names, policy=policy, fallback=targets("f")))
    for name, state, load in zip(names, states, loads, strict=False):
        Share(of[name].load, 10**6 if state == "full" else load)
        if state == "down":
            of[name].probed("away")
        elif state == "drained":
            of[name].ordered("drained", 1)
        elif state == "ejected":
            eject(of[name])
    message = [{"role": "user", "content": f"question {number}"}]
    found = explain(of, messages=message)
    (expected,) = picked(found)
    calls, attempt = await of.first(call(messages=message), tokens=100)
    if policy == "least-tokens":  # it draws two: the cheapest is only the likeliest
        assert attempt.target.name in [each.target for each in found if not each.refused]
    else:
        assert attempt.target.name == expected
    assert attempt.score.reason == next(each.reason for each in found if each.target == attempt.target.name)
    await calls.aclose()


@pytest.mark.parametrize("policy", POLICIES)
@virtual
async def test_to_ask_changes_nothing(policy: str) -> None:
    text = one("a", "b", "c", "d", policy=policy)
    asked, quiet = World(text), World(text)
    went: dict[World, list[str]] = {asked: [], quiet: []}
    for number in range(60):
        for of in went:
            if of is asked:
                for other in range(number % 4):
                    explain(of, messages=[{"role": "user", "content": f"other {other}"}])
            session = {"user": f"u{number}"} if number % 3 else {}
            calls, attempt = await of.first(call(messages=[{"role": "user", "content": f"{number % 7}"}], **session))
            went[of].append(attempt.target.name)
            of.held.append((calls, attempt))
    assert went[asked] == went[quiet]
    assert [t.load.running for t in asked.routes.targets.values()] == [
        t.load.running for t in quiet.routes.targets.values()
    ]


@pytest.mark.parametrize("state", ["down", "ejected"])
@virtual
async def test_what_is_overlooked_for_want_of_better_is_overlooked_here_too(state: str) -> None:
    of = World(one("a", "b"))
    for name in "ab":
        of[name].probed("away") if state == "down" else eject(of[name])
    assert picked(explain(of)) == (await of.tried())[:1]


@virtual
async def test_a_call_that_seems_too_long_is_explained_as_it_is_placed() -> None:
    of = World(one(targets=[*targets("a", context=100), *targets("b", context=1000)]))
    assert picked(explain(of, tokens=3000)) == ["b"] == await of.tried(tokens=3000)
    assert picked(explain(of, tokens=10**6)) == []
    assert {each.refused for each in explain(of, tokens=10**6)} == {"too_long"}


def test_where_nothing_can_take_the_call_nothing_is_picked() -> None:
    of = World(one("a", fallback=targets("b")))
    for name in "ab":
        of[name].rest(10.0)
    assert [(each.refused, each.picked) for each in explain(of)] == [("resting", False)] * 2


def test_a_route_that_stands_in_is_picked_only_if_the_first_has_none() -> None:
    of = World(table(r={"targets": targets("a"), "fallback_route": "s"}, s={"targets": targets("b")}))
    assert picked(explain(of)) == ["a"]
    of["a"].ordered("drained", 1)
    assert picked(explain(of)) == ["b"]
    of["a"].ordered("open", 2)
    of["a"].rest(10.0)
    assert picked(explain(of)) == ["b"]


def test_it_is_one_line_without_what_is_not_to_be_said() -> None:
    of = World(one("a", "b"))
    line = explained(explain(of, messages=[{"role": "user", "content": "my secret\nquestion"}]))
    assert b"\n" not in line and b"secret" not in line
    shown = json.loads(line)
    assert [each["target"] for each in shown] == ["a", "b"]
    assert shown[0].keys() <= set(Candidacy.__struct_fields__)


STATES = ("well", "down", "ejected", "drained", "resting", "short")


@given(
    st.lists(
        st.lists(st.lists(st.sampled_from(STATES), min_size=1, max_size=2), min_size=1, max_size=2),
        min_size=1,
        max_size=2,
    )
)
@example(shape=[[["down", "down"]], [["down"], ["well", "well"]]])
@virtual
async def test_it_agrees_with_what_calls_really_do(shape: list[list[list[str]]]) -> None:
    """What is picked of targets in any state, in tiers and routes, is where the call goes at once; else it does not."""
    names = [
        [[f"{r}{t}{n}" for n in range(len(tier))] for t, tier in enumerate(route)] for r, route in enumerate(shape)
    ]
    routes: dict[str, dict[str, object]] = {}
    for number, tiers in enumerate(names):
        fallback = [{**each, "tier": tier} for tier, of in enumerate(tiers[1:], 1) for each in targets(*of)]
        more = {"fallback_route": f"r{number + 1}"} if number + 1 < len(names) else {}
        routes[f"r{number}"] = {"targets": targets(*tiers[0]), "fallback": fallback, "queue": {"wait": "2s"}, **more}
    of = World(table(**routes))
    for tier, states in zip(chain(*names), chain(*shape), strict=True):
        for name, state in zip(tier, states, strict=True):
            match state:
                case "down":
                    of[name].probed("away")
                case "ejected":
                    eject(of[name])
                case "drained":
                    of[name].ordered("drained", 1)
                case "resting":
                    of[name].rest(1.0)
                case "short":
                    of[name].learned(Facts(context=5))
    for route in of.routes:
        route.measure()
    read = partial(of.routes.read, call=call("r0"), headers={}, key=key(), tokens=10)
    shown = picked(of.routes.explain(of.route, read))
    waits = of.routes.waits(of.route, read(of.route))
    began = of.clock()
    try:
        calls, attempt = await of.first(call("r0"))
    except GatewayError:
        assert not shown
        return
    await calls.aclose()
    if of.clock() > began:
        assert not shown and waits
    else:
        assert shown == [attempt.target.name] and not waits
