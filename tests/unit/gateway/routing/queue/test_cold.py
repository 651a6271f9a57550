"""Calls that are held until a target is there: for how long, how many, who goes first, and when nothing is held."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from unit.gateway.routing.building import World, call, eject, key, one, table, targets, virtual

from backends.api import Facts
from gateway.core.errors import Disconnected, NoTarget, Unreachable, UpstreamBusy, UpstreamError, UpstreamFailed
from gateway.routing import Attempt
from gateway.routing.queue.cold import HeldCalls
from gateway.routing.queue.events import QueueEvents
from gateway.routing.queue.queue import Queue, Waiter

SHUT = UpstreamBusy("status 503")
SHUT.broken = True


def holding(*names: str, **route: object) -> World:
    return World(one(*names, **{"hold": "30s", **route}))


def down(of: World, *names: str, why: str = "unreachable") -> None:
    for name in names:
        of[name].probed(why)


def up(of: World, *names: str) -> None:
    for name in names:
        of[name].probed("")
        of[name].sleeps(False)


async def answered(of: World, name: str = "c", **named: Any) -> str:
    """Where a call goes, which is answered at once."""
    attempts, attempt = await of.first(call(id=name, **named.pop("fields", {})), **named)
    await attempts.aclose()
    return attempt.target.name


async def held(of: World, calls: int) -> None:
    await asyncio.sleep(0.2)
    assert of.route.held.calls == calls


COLD = {
    "down": lambda of: down(of, "a"),
    "timeout": lambda of: down(of, "a", why="timeout"),
    "loading": lambda of: down(of, "a", why="status 503"),
    "asleep": lambda of: of["a"].sleeps(True),
    "missed": lambda of: of["a"].miss(),
}


@pytest.mark.parametrize("state", list(COLD))
@virtual
async def test_a_call_is_held_until_its_target_is_there(state: str) -> None:
    of = holding("a")
    COLD[state](of)
    waiting = asyncio.ensure_future(answered(of))
    await asyncio.sleep(20)
    assert not waiting.done() and (of.route.held.calls, of["a"].attempts) == (1, 0)
    up(of, "a")
    began = of.clock()
    assert await waiting == "a" and of.clock() - began < 0.1
    of.idle()
    assert of.route.held.calls == 0


@pytest.mark.parametrize("state", list(COLD))
@virtual
async def test_without_a_hold_the_last_target_is_tried_whatever_it_seems(state: str) -> None:
    of = World(one("a"))
    COLD[state](of)
    assert await answered(of) == "a"


@pytest.mark.parametrize("why", ["credential refused", "status 404", "cannot be probed"])
@virtual
async def test_a_target_that_answers_probes_with_a_complaint_is_tried(why: str) -> None:
    of = holding("a")
    down(of, "a", why=why)
    assert await answered(of) == "a"


@virtual
async def test_the_hold_ends_after_its_time_with_503_and_the_routes_name() -> None:
    of = holding("a", queue={"wait": "2s"})
    down(of, "a")
    with pytest.raises(NoTarget, match="'r'") as caught:
        await answered(of)
    assert of.clock() == pytest.approx(30.0) and caught.value.status == 503 and caught.value.retry_after == 5.0
    of.idle()


@virtual
async def test_a_call_that_reached_nobody_is_held_and_sent_again() -> None:
    of, tried = holding("a", "b", retry={"attempts": 2}), []

    async def ask() -> None:
        async with aclosing(of.attempts()) as attempts:
            async for attempt in attempts:
                tried.append((attempt.target.name, of.clock()))
                if len(tried) > 2:
                    return
                attempt.failed(Unreachable("refused"))

    waiting = asyncio.ensure_future(ask())
    await asyncio.sleep(5)
    assert sorted(name for name, _ in tried) == ["a", "b"] and of.route.held.calls == 1
    up(of, "b")
    await waiting
    assert tried[2][0] == "b" and tried[2][1] == pytest.approx(5.0, abs=0.1)
    of.idle()


@pytest.mark.parametrize("reloads", [1, 2])
@virtual
async def test_a_call_that_reached_nobody_is_held_whatever_table_is_in_force_by_then(reloads: int) -> None:
    of, tried = holding("a"), []

    async def ask() -> None:
        async with aclosing(of.attempts()) as attempts:
            async for attempt in attempts:
                tried.append(of.clock())
                if len(tried) > 1:
                    return
                for number in range(reloads):
                    of.reload(one("a", hold="30s", retry={"attempts": number + 1}))
                attempt.failed(Unreachable("refused"))

    waiting = asyncio.ensure_future(ask())
    await held(of, 1)
    up(of, "a")
    await waiting
    assert len(tried) == 2
    of.idle()


@virtual
async def test_a_target_that_was_lost_gets_the_call_again_only_when_a_probe_has_found_it() -> None:
    """A process that has died may listen a moment longer: connections stand, and end at once."""
    of, tried = holding("a"), []

    async def ask() -> None:
        async with aclosing(of.attempts()) as attempts:
            async for attempt in attempts:
                tried.append(of.clock())
                if len(tried) == 2:
                    return
                attempt.failed(Disconnected("it died"))

    waiting = asyncio.ensure_future(ask())
    await held(of, 1)
    assert len(tried) == 1
    up(of, "a")
    await waiting
    assert len(tried) == 2
    of.idle()


async def failing(of: World, *errors: UpstreamError) -> list[str]:
    """Where a call goes that fails so, one after the other; all targets seem up again 1 s after each failure."""
    found, left = [], list(errors)

    def back(name: str) -> None:
        up(of, name)

    async with aclosing(of.attempts()) as attempts:
        async for attempt in attempts:
            found.append(attempt.target.name)
            if not left:
                break
            attempt.failed(left.pop(0))
            asyncio.get_running_loop().call_later(1.0, back, attempt.target.name)
    return found


@pytest.mark.parametrize(
    ("errors", "attempts"),
    [
        ([Disconnected("")] * 9, 2),  # the target had the call: as often as the table allows
        ([SHUT] * 9, 2),
        ([Unreachable("")] * 5, 6),  # it had not: until it is answered
        ([Unreachable("")] * 50, 10),
        ([Unreachable(""), Disconnected("")], 3),
        ([Disconnected(""), Unreachable(""), Disconnected("")], 3),
        ([UpstreamFailed("")], 1),  # it is there
        ([Unreachable(""), UpstreamFailed("")], 2),
    ],
)
@virtual
async def test_how_often_a_call_is_sent(errors: list[UpstreamError], attempts: int) -> None:
    of = holding("a", retry={"attempts": 2})
    assert await failing(of, *errors) == ["a"] * attempts
    of.idle()


@virtual
async def test_all_waits_together_take_no_longer_than_the_hold() -> None:
    of = holding("a")

    async def flap() -> None:
        while True:
            await asyncio.sleep(9)
            up(of, "a")

    down(of, "a")
    flapping = asyncio.ensure_future(flap())
    with pytest.raises(NoTarget):
        async with aclosing(of.attempts()) as attempts:
            async for attempt in attempts:
                attempt.failed(Unreachable(""))
    assert of.clock() == pytest.approx(30.0)
    flapping.cancel()


@virtual
async def test_a_call_goes_where_something_is_up_rather_than_wait() -> None:
    of = holding("a", fallback=targets("b"))
    down(of, "a")
    assert await answered(of) == "b"
    of["b"].rest(1.0)
    assert await answered(of) == "b" and of.clock() == pytest.approx(1.0, abs=0.1), "it waits in the queue"
    of["b"].sleeps(True)
    waiting = asyncio.ensure_future(answered(of))
    await held(of, 1)
    up(of, "a")
    assert await waiting == "a"
    of.idle()


@virtual
async def test_a_route_that_stands_in_is_waited_for_too() -> None:
    of = World(table(r={"targets": targets("a"), "hold": "30s", "fallback_route": "s"}, s={"targets": targets("b")}))
    down(of, "a", "b")
    waiting = asyncio.ensure_future(answered(of))
    await held(of, 1)
    up(of, "b")
    assert await waiting == "b"
    down(of, "b")
    assert await answered(of, fields={"model": "s"}) == "b", "asked for itself, it holds nothing"
    of.idle()


@virtual
async def test_what_waiting_cannot_help_is_not_held() -> None:
    of = holding("a", "b")
    of["a"].ordered("drained", 1)
    of["b"].learned(Facts(context=100))
    down(of, "b")
    with pytest.raises(NoTarget):
        await answered(of, fields={"max_tokens": 95, "messages": []}, tokens=40)
    assert of.clock() == 0


@virtual
async def test_a_held_call_hears_that_nothing_will_come() -> None:
    of = holding("a")
    down(of, "a")
    waiting = asyncio.ensure_future(answered(of))
    await held(of, 1)
    of["a"].ordered("drained", 1)
    with pytest.raises(NoTarget):
        await waiting
    assert of.clock() < 1
    of.idle()


@virtual
async def test_an_ejected_target_that_is_up_again_is_tried_at_once() -> None:
    of = holding("a")
    eject(of["a"])
    down(of, "a")
    waiting = [asyncio.ensure_future(answered(of, f"c{n}")) for n in range(5)]
    await held(of, 5)
    up(of, "a")
    assert [await each for each in waiting] == ["a"] * 5 and of.clock() < 1
    of.idle()


@virtual
async def test_priority_and_tenants_decide_who_goes_first() -> None:
    of, order = holding("a"), []

    async def ask(name: str, who: Any) -> None:
        async with aclosing(of.attempts(call(id=name), who=who, tokens=1000)) as attempts:
            await anext(attempts)
            order.append(name)

    down(of, "a")
    asked = [("n1", key(tenant="t")), ("n2", key(tenant="t")), ("n3", key(tenant="u")), ("h", key("high"))]
    waiting = [asyncio.ensure_future(ask(name, who)) for name, who in asked]
    await held(of, 4)
    up(of, "a")
    await asyncio.gather(*waiting)
    assert order == ["h", "n1", "n2", "n3"], "a tenant's go in turn; between tenants nothing is scarce"
    of.idle()


@virtual
async def test_as_many_are_held_as_may_wait() -> None:
    of = holding("a", queue={"calls": 2})
    down(of, "a")
    waiting = [asyncio.ensure_future(answered(of, f"c{n}", who=key(tenant=f"t{n}"))) for n in range(2)]
    await held(of, 2)
    with pytest.raises(NoTarget, match="no more calls"):
        await answered(of, "late", who=key(tenant="t2"))
    first = asyncio.ensure_future(answered(of, "high", who=key("high")))
    with pytest.raises(NoTarget, match="no more calls"):
        await waiting[1]
    up(of, "a")
    assert [await waiting[0], await first] == ["a", "a"]
    of.idle()


@virtual
async def test_a_client_that_leaves_is_held_no_longer() -> None:
    of = holding("a")
    down(of, "a")
    waiting = asyncio.ensure_future(answered(of))
    await held(of, 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert of.route.held.calls == 0
    of.idle()


@virtual
async def test_how_calls_were_held_is_told() -> None:
    of = holding("a", queue={"calls": 1})
    down(of, "a")
    waiting = asyncio.ensure_future(answered(of))
    await held(of, 1)
    with pytest.raises(NoTarget):
        await answered(of)
    waiting.cancel()
    await asyncio.wait([waiting])
    with pytest.raises(NoTarget):
        await answered(of)
    asyncio.get_running_loop().call_later(3.0, up, of, "a")
    assert await answered(of) == "a"
    assert of.holds == [("r", "refused", 0), ("r", "gone", 0), ("r", "expired", 30), ("r", "up", 3)]


@virtual
async def test_a_newer_table_takes_over_what_is_held() -> None:
    of = holding("a")
    down(of, "a")
    waiting = asyncio.ensure_future(answered(of))
    await held(of, 1)
    of.reload(one("b", hold="30s"))
    assert await waiting == "b"
    down(of, "b")
    waiting = asyncio.ensure_future(answered(of))
    await held(of, 1)
    of.reload(table(other={"targets": targets("c")}))
    with pytest.raises(NoTarget):
        await waiting
    assert of.clock() < 1, "the route is no more"
    of.idle()


@virtual
async def test_a_route_that_is_up_and_yet_takes_nothing_is_not_asked_for_ever() -> None:
    of = holding("a")
    of["a"].ordered("drained", 1)
    of.route.waits_for = lambda prompt, spent=(): False  # type: ignore[method-assign]
    with pytest.raises(NoTarget):
        await answered(of)


@virtual
async def test_a_call_that_can_wait_does_not_go_where_one_that_cannot_was_let() -> None:
    of = World(table(r={"targets": targets("a")}, s={"targets": targets("b"), "hold": "30s", "fallback_route": "r"}))
    of["a"].miss()
    down(of, "b")
    assert await answered(of) == "a"
    waiting = asyncio.ensure_future(answered(of, fields={"model": "s"}))
    await asyncio.sleep(1)
    assert not waiting.done()
    up(of, "b")
    assert await waiting == "b"


@virtual
async def test_the_client_is_told_how_long_its_call_was_held() -> None:
    of = holding("a")
    down(of, "a")
    asyncio.get_running_loop().call_later(3.0, up, of, "a")
    attempts, attempt = await of.first()
    told = dict(attempt.headers)
    assert float(told[b"x-trunkline-held"]) == pytest.approx(3.0, abs=0.1) and attempt.waited < 0.01
    await attempts.aclose()
    attempts, attempt = await of.first()
    assert b"x-trunkline-held" not in dict(attempt.headers)
    await attempts.aclose()


@virtual
async def test_the_rest_of_an_answer_is_not_held() -> None:
    class Resumes:
        def resume(self, call: Any, said: str) -> Any:
            return call

    of = World(one("a", "b", hold="30s"), adapters=lambda _: Resumes())
    calls, attempt = await of.first()
    down(of, "a", "b")

    def broken(attempt: Attempt) -> None:
        attempt.failed(Disconnected(""))
        attempt.resume()

    broken(attempt)
    assert await anext(calls, None) is None and of.clock() == 0
    of.idle()


@virtual
async def test_a_hold_is_explained() -> None:
    of = holding("a")
    down(of, "a")
    prompt = of.routes.read(of.route, call(), {}, key(), 10)
    (shown,) = of.routes.explain(of.route, lambda _: prompt)
    assert (shown.refused, shown.picked) == ("down", False)


class _Resuming:
    def resume(self, call: Any, said: str) -> Any:
        return call


@virtual
@pytest.mark.parametrize("most", [1, 2])
async def test_a_call_that_was_held_has_all_its_resumes(most: int) -> None:
    table = one("a", "b", "c", hold="30s", retry={"attempts": most})
    of, tried = World(table, adapters=lambda _: _Resuming()), list[str]()

    async def told() -> None:
        attempts, attempt = await of.first(call(id="c"))
        while attempt is not None:
            tried.append(attempt.target.name)
            attempt.failed(Disconnected(""))
            attempt.resume()
            attempt.end()
            attempt = await anext(attempts, None)
        await attempts.aclose()

    down(of, "a", "b", "c")
    waiting = asyncio.ensure_future(told())
    await held(of, 1)
    up(of, "a", "b", "c")
    await waiting
    assert sorted(tried) == ["a", "b", "c"]


@virtual
async def test_held_calls_do_not_wait_for_each_other() -> None:
    """Many that what is up cannot take stand before one that it can."""
    clock = asyncio.get_running_loop().time
    hold = HeldCalls("r", Queue(calls=100, size=1 << 20, clock=clock), clock, QueueEvents())
    ready: list[str] = []

    async def wait(name: str, tenant: str, seconds: float) -> None:
        await hold.wait(Waiter("normal", tenant, 10, 10), lambda: name in ready, seconds)

    large = [asyncio.ensure_future(wait("large", tenant, 5)) for tenant in ("t", "u") for _ in range(20)]
    small = [asyncio.ensure_future(wait("small", tenant, 5)) for tenant in ("t", "u", "v")]
    await asyncio.sleep(0.1)
    ready.append("small")
    await asyncio.gather(*small)
    assert not any(each.done() for each in large)
    ready.append("large")
    await asyncio.gather(*large)
