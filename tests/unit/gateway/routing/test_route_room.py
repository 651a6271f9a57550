"""Calls and the room that targets have for them: contexts, pauses, slots, the queue."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from harness.virtual_time import settle
from unit.gateway.routing.building import World, call, key, one, targets, tried_in_turn, virtual

from backends.api import Facts
from gateway.core.errors import ContextTooLong, QueueFull, QueueTimeout, Unreachable, UpstreamBusy
from gateway.core.types import Spent
from gateway.targets.load import LoadReport


@virtual
async def test_short_contexts_are_passed_over_by_calls_that_need_more() -> None:
    of = World(one(targets=[*targets("a", context=100), *targets("b", context=1000)]))
    went = Counter([(await of.tried(call(max_tokens=500)))[0] for _ in range(10)])
    assert went == {"b": 10}
    assert await of.tried(call(max_tokens=500)) == ["b"], "nor by a retry"
    assert sorted(await of.tried(call(max_tokens=50))) == ["a", "b"]


@pytest.mark.parametrize("fields", [{"max_tokens": 1001}, {"max_completion_tokens": 1001}])
@virtual
async def test_a_call_that_fits_nowhere_is_told_the_limit(fields: dict[str, int]) -> None:
    of = World(one(targets=[*targets("a", context=100), *targets("b", context=1000)]))
    with pytest.raises(ContextTooLong) as caught:
        await of.tried(call(**fields))
    assert caught.value.status == 400 and "1000 tokens" in caught.value.message
    assert caught.value.code == "context_length_exceeded"
    of.idle()


@virtual
async def test_an_estimate_alone_refuses_no_call() -> None:
    """Bytes tell little: the largest target is asked, and says itself whether it fits."""
    of = World(one(targets=[*targets("a", context=100), *targets("b", context=1000)]))
    assert await of.tried(tokens=3000) == ["b"]
    with pytest.raises(ContextTooLong, match="about 5000 tokens"):
        await of.tried(tokens=5000)


@virtual
async def test_an_estimate_above_every_bound_of_prompts_refuses_none_either() -> None:
    """Servers may bound the prompt apart; that it is too long for them all is the client's fault, not theirs."""
    of = World(one(targets=[*targets("a", context=10_000), *targets("b", context=10_000)]))
    of["a"].learned(Facts(prompt=100))
    of["b"].learned(Facts(prompt=1000))
    of.route.measure()
    assert await of.tried(tokens=500) == ["b"]
    assert await of.tried(tokens=3000) == ["b"]
    with pytest.raises(ContextTooLong, match="1000 tokens"):
        await of.tried(tokens=5000)


@virtual
async def test_a_target_of_unknown_context_takes_any_call() -> None:
    of = World(one(targets=[*targets("a", context=100), *targets("b")]))
    assert await of.tried(call(max_tokens=10**6)) == ["b"]
    of["b"].learned(Facts(context=2000))
    of.route.measure()
    with pytest.raises(ContextTooLong, match="2000 tokens"):
        await of.tried(call(max_tokens=10**6))


@virtual
async def test_a_call_for_a_larger_context_waits_for_it_and_not_for_others() -> None:
    of = World(one(targets=[*targets("a", context=100), *targets("b", context=1000)], queue={"wait": "5s"}))
    of["b"].rest(2.0)
    _, attempt = await of.first(call(max_tokens=500))
    assert attempt.target.name == "b" and attempt.waited == pytest.approx(2.0, abs=0.06)


@virtual
async def test_a_target_that_asks_for_a_pause_has_it() -> None:
    of = World(one("a", "b"))
    first, attempt = await of.first()
    resting = attempt.target.name
    attempt.failed(UpstreamBusy("429", retry_after=5.0))
    other = await anext(first)
    assert other.target.name != resting
    await first.aclose()
    began = of.clock()
    while of.clock() < began + 5.0:
        went = await of.tried()
        assert went == [other.target.name]
        await asyncio.sleep(0.5)
    assert sorted(await of.tried()) == ["a", "b"]


@virtual
async def test_a_client_is_told_when_the_first_pause_ends_and_does_not_wait_in_vain() -> None:
    of = World(one("a", "b", queue={"wait": "5s"}))
    of["a"].rest(25.0)
    of["b"].rest(20.0)
    with pytest.raises(QueueTimeout) as caught:
        await of.tried()
    assert (caught.value.status, caught.value.retry_after, of.clock()) == (429, 20.0, 0.0)
    of.idle()


@virtual
async def test_a_full_target_may_have_room_before_any_pause_ends() -> None:
    of = World(one(targets=[*targets("a", max_inflight=1), *targets("b")], queue={"wait": "5s"}))
    of["b"].rest(20.0)
    held, attempt = await of.first(call(id="c0"))
    assert attempt.target.name == "a"
    waits = asyncio.create_task(of.tried(call(id="c1")))
    await asyncio.sleep(1.0)
    await held.aclose()
    assert await waits == ["a"] and of.clock() == 1.0
    of.idle()


@virtual
async def test_a_call_waits_for_a_pause_that_ends_in_time() -> None:
    of = World(one("a", "b", queue={"wait": "5s"}))
    of["a"].rest(60.0)
    of["b"].rest(3.0)
    calls, attempt = await of.first()
    assert attempt.target.name == "b"
    assert attempt.waited == of.clock() == pytest.approx(3.0, abs=0.06)
    await calls.aclose()
    of.idle()


@virtual
async def test_low_priority_leaves_room_for_others() -> None:
    of, low = World(one(targets=targets("a", max_inflight=10), queue={"wait": "1s"})), key("low")
    held = [(await of.first(call(id=f"l{n}"), who=low))[0] for n in range(7)]
    with pytest.raises(QueueTimeout):
        await of.first(call(id="l7"), who=low)
    held += [(await of.first(call(id=f"n{n}")))[0] for n in range(3)]
    with pytest.raises(QueueTimeout):
        await of.first(call(id="n3"))
    for each in held:
        await each.aclose()
    of.idle()


@virtual
async def test_calls_wait_in_turn_for_room_that_others_leave() -> None:
    of = World(one(targets=targets("a", max_inflight=2)))
    placed: list[str] = []

    async def ask(id: str) -> None:
        calls, attempt = await of.first(call(id=id))
        placed.append(f"{id} {attempt.waited:.0f}")
        await asyncio.sleep(1.0)
        await calls.aclose()

    await asyncio.gather(*(ask(f"c{n}") for n in range(6)))
    assert placed == ["c0 0", "c1 0", "c2 1", "c3 1", "c4 2", "c5 2"]
    assert of.clock() == pytest.approx(3.0, abs=0.1), "room is used at once"
    assert max(calls for _, calls, _ in of.queued) == 4 and of.queued[-1] == ("r", 0, 0)
    of.idle()


@virtual
async def test_who_waits_in_vain_is_told_when_to_come_again() -> None:
    of = World(one(targets=targets("a", max_inflight=1), queue={"wait": "2s"}))
    held, _ = await of.first()
    with pytest.raises(QueueTimeout) as caught:
        await of.tried(call(id="c1"))
    assert of.clock() == pytest.approx(2.0) and caught.value.status == 429 and (caught.value.retry_after or 0) >= 1
    await held.aclose()
    of.idle()


@virtual
async def test_a_queue_of_no_length_refuses_at_once() -> None:
    of = World(one(targets=targets("a", max_inflight=1), queue={"calls": 0}))
    held, _ = await of.first()
    with pytest.raises(QueueFull):
        await of.tried(call(id="c1"))
    assert of.clock() == 0.0
    await held.aclose()
    of.idle()


@virtual
async def test_large_bodies_fill_the_queue_too() -> None:
    of = World(one(targets=targets("a", max_inflight=1), queue={"size": 300}))
    held, _ = await of.first()
    small = asyncio.create_task(of.tried(call(id="c1")))
    await settle()
    with pytest.raises(QueueFull):
        await of.tried(call(id="c2", user="x" * 300))
    await held.aclose()
    assert await small == ["a"]
    of.idle()


@pytest.mark.parametrize("end", ["a rest", "others", "an order"])
@virtual
async def test_room_that_nobody_tells_of_is_found_soon(end: str) -> None:
    """Or told of by the fleet: either way the call that waits is placed."""
    of, loop = World(one("a")), asyncio.get_running_loop()
    a = of["a"]
    if end == "a rest":
        a.rest(1.0)
    elif end == "others":
        a.load.apply({"g": (LoadReport(10**6, 1, 1, 10**6), 0.0)}, of.clock())
        loop.call_later(1.0, a.load.apply, {}, 1.0)
    else:
        a.rest(60.0)
        a.resting_until = 2.0
        loop.call_later(1.0, setattr, a, "resting_until", 0.0)
    calls, attempt = await of.first()
    assert attempt.waited == pytest.approx(1.0, abs=0.06)
    await calls.aclose()
    of.idle()


@virtual
async def test_a_retry_does_not_wait() -> None:
    """Its client has waited already; what the first target said is answer enough."""
    of = World(one(targets=[*targets("a"), *targets("b", max_inflight=1)]))
    of["a"].rest(0.1)
    held, attempt = await of.first(call(id="c0"))
    assert attempt.target.name == "b"
    await asyncio.sleep(0.2)
    began = of.clock()
    assert await of.tried(call(id="c1")) == ["a"]
    assert of.clock() == began
    await held.aclose()


@virtual
async def test_a_call_whose_target_is_gone_may_wait_for_another() -> None:
    """Nobody works on it any more: it is as if it came now."""
    of = World(one(targets=[*targets("a"), *targets("b", max_inflight=1)], queue={"wait": "5s"}))
    of["a"].rest(0.1)
    held, attempt = await of.first(call(id="c0"))
    assert attempt.target.name == "b"
    await asyncio.sleep(0.2)
    calls, attempt = await of.first(call(id="c1"))
    await asyncio.sleep(7.0)
    attempt.failed(Unreachable("away"))
    asyncio.get_running_loop().call_later(2.0, asyncio.ensure_future, held.aclose())
    began = of.clock()
    assert (await anext(calls)).target.name == "b"
    assert of.clock() == pytest.approx(began + 2.0, abs=0.1)
    await calls.aclose()
    of.idle()


@virtual
async def test_the_last_slot_of_a_gateway_goes_to_those_who_wait_in_others() -> None:
    of = World(one(targets=targets("a", max_inflight=1)))
    held, _ = await of.first(call(id="c0"))
    of.route.others_waiting = 3
    waits = asyncio.create_task(of.first(call(id="c1")))
    await settle()
    began = of.clock()
    await held.aclose()
    calls, _ = await waits
    assert began < of.clock() < began + 0.5, "they had their chance, and did not take it"
    of.route.others_waiting = 0
    next_one = asyncio.create_task(of.first(call(id="c2")))
    await settle()
    began = of.clock()
    await calls.aclose()
    calls, _ = await next_one
    assert of.clock() == began
    await calls.aclose()
    of.idle()


@virtual
async def test_a_slot_that_another_gateway_has_sends_the_call_elsewhere() -> None:
    text = one(targets=[*targets("a", max_inflight=1)], fallback=targets("b"))
    of = World(text)
    other = World(text, limits=of.limits)
    held, _ = await other.first(call(id="theirs"))
    began = of.clock()
    calls, attempt = await of.first(call(id="ours"))
    assert (attempt.target.name, attempt.fallback, of.clock()) == ("b", "full", began)
    assert (of["a"].load.running, of["a"].load.prefill) == (0, 0)
    await calls.aclose()
    await held.aclose()
    await asyncio.sleep(0.06)
    assert (await of.tried(call(id="again")))[0] == "a", "the slot is free, and that was found soon"


@virtual
async def test_a_retry_does_not_wait_for_a_slot_either() -> None:
    text = one(targets=[*targets("a"), *targets("b", max_inflight=1)])
    of = World(text)
    other = World(text, limits=of.limits)
    other["a"].ordered("drained", 1)
    held, _ = await other.first(call(id="theirs"))
    of["b"].rest(0.1)
    calls, attempt = await of.first(call(id="ours"))
    assert attempt.target.name == "a"
    await asyncio.sleep(0.2)
    began = of.clock()
    assert await anext(calls, None) is None and of.clock() == began
    await held.aclose()
    of.idle()


@pytest.mark.parametrize("attempts", [1, 2])
@virtual
async def test_what_a_call_took_is_asked_once_when_it_is_over(attempts: int) -> None:
    """Not before: what is told then is fixed, and charged."""
    of, asked = World(one("a", "b")), []
    over = False

    def spent() -> Spent:
        asked.append(over)
        return Spent(input=100, output=50)

    calls = tried_in_turn(of.routes.attempts(of.route, call(), {}, key(), 10), spent)
    for _ in range(attempts):
        await anext(calls)
    over = True
    await calls.aclose()
    assert asked == [True]


@virtual
async def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    of = World(one(targets=targets("a", max_inflight=1), queue={"calls": 1}))
    held, _ = await of.first()
    gone = asyncio.create_task(of.tried(call(id="c1")))
    await settle()
    gone.cancel()
    await settle()
    assert gone.cancelled() and of.queued[-1] == ("r", 0, 0)
    waits = asyncio.create_task(of.tried(call(id="c2")))
    await settle()
    await held.aclose()
    assert await waits == ["a"]
    of.idle()
