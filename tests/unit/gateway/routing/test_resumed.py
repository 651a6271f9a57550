"""An answer that broke off goes on at another target of its tier, and nowhere else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.gateway.routing.building import World, call, eject, key, one, table, targets, virtual

from backends.api import Call
from gateway.core.errors import UpstreamTimeout
from gateway.core.types import Spent
from gateway.routing import Attempt
from gateway.routing.retry_budget import RETRY_FLOOR


class Resumes:
    """An adapter that can go on with an answer."""

    def resume(self, call: Call, said: str) -> Call:
        return call


def adapter(backend: str) -> Any:
    return Resumes() if backend == "vllm" else object()


def world(text: str) -> World:
    return World(text, adapters=adapter)


def broken(attempt: Attempt) -> Attempt:
    """As the page tells of a target that died after the client had a part of its answer."""
    attempt.failed(UpstreamTimeout("silent"))
    attempt.resume()
    return attempt


def charged(of: World) -> int:
    """What the only tenant of the first route was charged, and what it was lifted by when it came back to the line."""
    return of.route.queue._classes["normal"]._idle["t"].counter


async def resumed(of: World, **named: Any) -> list[str]:
    """Where a call goes whose answer breaks off at every target."""
    async with aclosing(of.attempts(**named)) as attempts:
        return [broken(attempt).target.name async for attempt in attempts]


@virtual
async def test_the_answer_goes_on_at_a_target_of_its_tier_however_few_attempts_there_are() -> None:
    of = world(one("a", "b", "c", "d", fallback=targets("e"), retry={"attempts": 1}))
    found = await resumed(of)
    assert len(found) == len(set(found)) == 3 and "e" not in found
    of.idle()


@virtual
async def test_no_other_tier_and_no_other_route_goes_on() -> None:
    of = world(
        table(
            r={"targets": targets("a"), "fallback": targets("b", "c"), "fallback_route": "s"},
            s={"targets": targets("d", "e")},
        )
    )
    assert await resumed(of) == ["a"]
    of["a"].ordered("drained", 1)
    assert sorted(await resumed(of)) == ["b", "c"]
    for name in "bc":
        of[name].ordered("drained", 1)
    assert sorted(await resumed(of)) == ["d", "e"], "what the other route began goes on there"
    of.idle()


@virtual
async def test_what_another_route_goes_on_with_is_asked_by_that_routes_name() -> None:
    of = world(table(r={"targets": targets("a"), "fallback_route": "s"}, s={"targets": targets("d", "e")}))
    of["a"].ordered("drained", 1)
    told = [(p.address.model, p.fallback) async for p in of.attempts() if broken(p)]
    assert told == [("s", "no_target")] * 2


@virtual
async def test_a_target_whose_adapter_cannot_is_passed_over() -> None:
    text = one("a", fallback=[])
    of = world(text.replace("]", ', {"name": "b", "backend": "openai", "url": "http://b"}]', 1))
    assert len(of.routes.targets) == 2
    for _ in range(4):
        found = await resumed(of)
        assert found in (["a"], ["b", "a"]), "that it began there is no reason not to go on at another"
    of["a"].ordered("drained", 1)
    assert await resumed(of) == ["b"]


@virtual
async def test_an_ejected_or_drained_target_does_not_go_on_and_one_that_seems_down_does() -> None:
    of = world(one("a", "b", "c", "d"))
    eject(of["b"])
    of["c"].ordered("drained", 1)
    of["d"].probed("away")
    assert await resumed(of) == ["a", "d"]


@virtual
async def test_a_retry_before_the_first_byte_may_be_followed_by_a_resumed_answer() -> None:
    of, found = world(one("a", "b", "c", fallback=targets("d"), retry={"attempts": 2})), []
    async with aclosing(of.attempts()) as attempts:
        async for attempt in attempts:
            found.append(attempt.target.name)
            attempt.failed(UpstreamTimeout("silent"))
            if len(found) == 2:
                attempt.resume()
    assert sorted(found) == ["a", "b", "c"]
    of.idle()


@virtual
async def test_it_is_no_retry_for_the_budget() -> None:
    of = world(one("a", "b", retry={"attempts": 1}))
    started = [await of.first() for _ in range(RETRY_FLOOR + 1)]
    for calls, attempt in started:
        broken(attempt)
        assert await anext(calls, None) is not None
        assert of.route.retries.retrying == 0
    for calls, _ in started:
        await calls.aclose()
    of.idle()


@pytest.mark.parametrize("chained", [False, True])
@virtual
async def test_it_waits_for_room_in_its_tier_first_in_its_tenants_line(chained: bool) -> None:
    routes: dict[str, dict[str, object]] = {
        "r": {"policy": "round-robin", "targets": targets("a", "b", max_inflight=1), "queue": {"wait": "5s"}}
    }
    if chained:
        routes |= {"s": {"targets": targets("z")}}
        routes["r"]["fallback_route"] = "s"
    of = world(table(**routes))
    first, attempt = await of.first(call(id="1"))
    second, other = await of.first(call(id="2"))
    broken(attempt)
    waiting = asyncio.ensure_future(anext(first))  # type: ignore[arg-type] # it is awaitable
    await asyncio.sleep(0.5)
    assert not waiting.done() and of.route.queue.waiting == 1
    await second.aclose()
    assert (await waiting).target is other.target
    await first.aclose()
    of.idle()


@virtual
async def test_in_vain_it_waits_as_long_as_a_call_may_and_nothing_else_is_tried() -> None:
    of = world(
        table(
            r={
                "policy": "round-robin",
                "targets": targets("a", "b", max_inflight=1),
                "queue": {"wait": "5s"},
                "fallback_route": "s",
            },
            s={"targets": targets("z")},
        )
    )
    first, attempt = await of.first(call(id="1"))
    second, _ = await of.first(call(id="2"))
    broken(attempt)
    began = of.clock()
    assert await anext(first, None) is None
    assert of.clock() - began == pytest.approx(5.0)
    await second.aclose()
    of.idle()


@virtual
async def test_its_prompt_is_counted_at_the_target_where_it_goes_on() -> None:
    of = world(one("a", "b"))
    calls, attempt = await of.first(tokens=300)
    began = attempt.target
    attempt.first_token()
    broken(attempt)
    attempt = await anext(calls)
    load = attempt.target.load
    assert attempt.target is not began and (load.prefill, load.waiting, load.running) == (300, 1, 1)
    assert began.load.running == 0
    await calls.aclose()
    of.idle()


@virtual
async def test_half_an_answer_is_charged_to_its_tenant() -> None:
    of = world(one("a", "b"))
    of.spent = Spent(input=1000, output=500)
    await resumed(of)
    assert charged(of) == pytest.approx(2000, abs=50)


@virtual
async def test_a_client_that_leaves_while_its_answer_waits_is_charged_once() -> None:
    of = world(one("a", "b", policy="round-robin", queue={"wait": "5s"}))
    for name in "ab":
        of[name].max_inflight = 1
    first, attempt = await of.first(call(id="1"))
    second, _ = await of.first(call(id="2"), who=key(tenant="u"))
    of.spent = Spent(input=1000, output=500)
    broken(attempt)
    waiting = asyncio.ensure_future(anext(first))  # type: ignore[arg-type] # it is awaitable
    await asyncio.sleep(0.5)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert charged(of) == pytest.approx(2000, abs=50)
    await second.aclose()
    of.idle()


@virtual
async def test_a_newer_tables_targets_of_the_tier_go_on() -> None:
    of = world(one("a", "b"))
    calls, attempt = await of.first()
    of.reload(one("c", "d", fallback=targets("a", "b")))
    broken(attempt)
    found = [broken(each).target.name async for each in calls]
    assert sorted(found) == ["c", "d"]
    of.idle()


STATES = ("well", "down", "ejected", "drained", "full")


@given(st.lists(st.lists(st.sampled_from(STATES), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(1, 3))
@virtual
async def test_whatever_the_targets_are_like(shape: list[list[str]], attempts: int) -> None:
    names = [[f"t{tier}-{n}" for n in range(len(states))] for tier, states in enumerate(shape)]
    fallback = [{**each, "tier": number} for number, tier in enumerate(names[1:], 1) for each in targets(*tier)]
    of = world(one(*names[0], fallback=fallback, retry={"attempts": attempts}, queue={"wait": "1s"}))
    calls, attempt = await of.first()
    for tier, states in zip(names, shape, strict=True):
        for name, state in zip(tier, states, strict=True):
            match state:
                case "down":
                    of[name].probed("away")
                case "ejected":
                    eject(of[name])
                case "drained":
                    of[name].ordered("drained", 1)
                case "full":
                    of[name].rest(9.0, "full")
    began = attempt.target
    states = dict(zip(names[began.tier], shape[began.tier], strict=True))
    states.pop(began.name)
    welcome = ("well",) if "full" in states.values() else ("well", "down")  # to wait is better than to ask the dead
    usable = {name for name, state in states.items() if state in welcome}
    broken(attempt)
    found = [broken(each).target.name async for each in calls]
    assert len(found) == len(set(found)) == min(2, len(usable)) and set(found) <= usable
    of.idle()
