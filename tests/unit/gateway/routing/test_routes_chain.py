"""Another route stands in: at once when the first cannot, never twice at one target, at six at most."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
from unit.gateway.routing.building import World, call, key, table, targets, tried_in_turn, virtual

from gateway.core.errors import ContextTooLong, GatewayError, NoTarget, QueueTimeout
from gateway.core.types import Spent


def world(**routes: dict[str, object]) -> World:
    """Routes `a`, `b`, ..., of which each stands in for the one before."""
    names = list(routes)
    for name, following in pairwise(names):
        routes[name]["fallback_route"] = following
    return World(table(**routes))


def of_targets(*names: str, attempts: int = 3, **values: object) -> dict[str, object]:
    return {"policy": "round-robin", "targets": targets(*names, **values), "retry": {"attempts": attempts}}


def drain(of: World, *names: str) -> None:
    for name in names:
        of[name].ordered("drained", 1)


async def hold(of: World, model: str) -> None:
    """Take a slot of the model's route for good."""
    route = of.routes.get(model)
    assert route is not None
    calls = tried_in_turn(of.routes.attempts(route, call(model, id=f"held {model}"), {}, key(), 10), lambda: of.spent)
    of.held.append((calls, await anext(calls)))


@virtual
async def test_a_route_that_has_no_target_is_stood_in_for_under_the_name_that_its_target_knows() -> None:
    of = world(a=of_targets("a1"), b={"targets": [*targets("b1"), *targets("b2", model="own")]})
    drain(of, "a1")
    told = {p.target.name: (p.fallback, p.address.model) async for p in of.attempts(call("a"))}
    assert told == {"b1": ("no_target", "b"), "b2": ("no_target", "own")}
    told = {p.target.name: (p.fallback, p.address.model) async for p in of.attempts(call("b"))}
    assert told == {"b1": ("", None), "b2": ("", "own")}, "asked for itself it is asked by the client's name"


@virtual
async def test_a_route_whose_targets_all_fail_is_stood_in_for() -> None:
    of = world(a=of_targets("a1", "a2"), b=of_targets("b1"))
    told = [(p.target.name, p.fallback) async for p in of.attempts(call("a"))]
    assert told[2] == ("b1", "failed") and {name for name, _ in told[:2]} == {"a1", "a2"}


@pytest.mark.parametrize(
    ("first", "second", "tried"), [(1, 3, "abbb"), (2, 3, "aabbb"), (3, 3, "aaabbb"), (1, 1, "ab")]
)
@virtual
async def test_each_route_has_its_own_bound(first: int, second: int, tried: str) -> None:
    of = world(a=of_targets("a1", "a2", "a3", attempts=first), b=of_targets("b1", "b2", "b3", attempts=second))
    assert "".join(name[0] for name in await of.tried(call("a"))) == tried


@virtual
async def test_six_targets_are_asked_for_one_call_at_most_its_fallback_tiers_before_another_route() -> None:
    tiers = {"fallback": [*targets("a4", "a5", tier=1), *targets("a6", tier=2)]}
    of = world(a={**of_targets("a1", "a2", "a3", attempts=2), **tiers}, b=of_targets("b1", "b2"))
    found = await of.tried(call("a"))
    assert set(found[:2]) < {"a1", "a2", "a3"} and sorted(found[2:]) == ["a4", "a5", "a6", "b1"]


@virtual
async def test_a_chain_is_followed_to_its_end() -> None:
    of = world(a=of_targets("a1"), b=of_targets("b1"), c=of_targets("c1"))
    assert await of.tried(call("a")) == ["a1", "b1", "c1"]
    drain(of, "a1", "b1")
    assert await of.tried(call("a")) == ["c1"]
    assert [route.name for route in of.routes.chain(of.route)] == ["a", "b", "c"]


@virtual
async def test_a_full_route_is_stood_in_for_at_once() -> None:
    of = world(a=of_targets("a1", max_inflight=1), b=of_targets("b1"))
    await hold(of, "a")
    began = of.clock()
    told = [(p.target.name, p.fallback) async for p in of.attempts(call("a"))]
    assert told == [("b1", "full")] and of.clock() == began


@virtual
async def test_when_all_are_full_a_call_waits_for_its_own() -> None:
    of = world(a=of_targets("a1", max_inflight=1), b=of_targets("b1", max_inflight=1))
    of["a1"].rest(3.0)
    await hold(of, "b")
    calls, attempt = await of.first(call("a"))
    assert (attempt.target.name, attempt.fallback) == ("a1", "")
    assert of.clock() == pytest.approx(3.0, abs=0.06)
    await calls.aclose()


@virtual
async def test_who_waits_in_vain_waited_once() -> None:
    of = world(
        a={**of_targets("a1", max_inflight=1), "queue": {"wait": "4s"}},
        b={**of_targets("b1", max_inflight=1), "queue": {"wait": "4s"}},
    )
    await hold(of, "a")  # is served by a1
    await hold(of, "b")
    with pytest.raises(QueueTimeout):
        await of.tried(call("a"))
    assert of.clock() == pytest.approx(4.0)


@virtual
async def test_no_target_is_tried_twice_though_the_other_route_is_full() -> None:
    of = world(a=of_targets("a1"), b=of_targets("b1", max_inflight=1))
    await hold(of, "b")
    began = of.clock()
    assert await of.tried(call("a")) == ["a1"]
    assert of.clock() == began, "a retry does not wait"


@pytest.mark.parametrize("why", ["drained", "too long"])
@virtual
async def test_a_call_that_only_the_other_route_can_take_waits_there(why: str) -> None:
    of = world(a=of_targets("a1", context=100), b=of_targets("b1", context=10_000))
    if why == "drained":
        drain(of, "a1")
    of["b1"].rest(3.0)
    calls, attempt = await of.first(call("a", max_tokens=50 if why == "drained" else 500))
    assert attempt.target.name == "b1"
    assert attempt.fallback == ("no_target" if why == "drained" else "too_long")
    assert of.clock() == pytest.approx(3.0, abs=0.06)
    await calls.aclose()


@virtual
async def test_a_call_too_long_for_one_route_goes_to_the_other() -> None:
    of = world(a=of_targets("a1", context=100), b=of_targets("b1", context=1000))
    told = [(p.target.name, p.fallback) async for p in of.attempts(call("a", max_tokens=500))]
    assert told == [("b1", "too_long")]


@pytest.mark.parametrize(
    ("contexts", "drained", "error"),
    [
        ((1000, 100), ["a1"], NoTarget),
        ((100, 1000), ["b1"], NoTarget),
        ((100, 200), [], ContextTooLong),
        ((100, 200), ["a1", "b1"], ContextTooLong),
        ((1000, 1000), ["a1", "b1"], NoTarget),
    ],
)
@virtual
async def test_only_a_call_that_fits_nowhere_is_called_too_long(
    contexts: tuple[int, int], drained: list[str], error: type[GatewayError]
) -> None:
    of = world(a=of_targets("a1", context=contexts[0]), b=of_targets("b1", context=contexts[1]))
    drain(of, *drained)
    with pytest.raises(error):
        await of.tried(call("a", max_tokens=500))
    for name in ("a1", "b1"):
        assert of[name].attempts == 0


@virtual
async def test_what_the_first_target_said_stays_the_answer_where_the_other_route_cannot_help() -> None:
    of = world(a=of_targets("a1"), b=of_targets("b1", context=100))
    assert await of.tried(call("a", max_tokens=500)) == ["a1"]


@pytest.mark.parametrize("served", [1, 2])
@virtual
async def test_what_a_call_took_is_asked_when_it_is_over_whichever_route_served_it(served: int) -> None:
    """What is told then is fixed: asked before the other route has answered, the call would be free."""
    of, asked, over = world(a=of_targets("a1"), b=of_targets("b1")), [], False

    def spent() -> Spent:
        asked.append(over)
        return Spent(input=10, output=5)

    async with aclosing(tried_in_turn(of.routes.attempts(of.route, call("a"), {}, key(), 10), spent)) as attempts:
        for _ in range(served):
            await anext(attempts)
        over = True
    assert asked == [True]
    of.idle()


@virtual
async def test_a_client_that_leaves_while_it_waits_leaves_nothing_in_any_queue() -> None:
    of = world(a=of_targets("a1", max_inflight=1), b=of_targets("b1", max_inflight=1))
    of["a1"].rest(5.0)
    of["b1"].rest(5.0)
    waits = asyncio.create_task(of.tried(call("a")))
    await asyncio.sleep(1.0)
    waits.cancel()
    await asyncio.wait([waits])
    of.idle()
