"""Storms: whatever calls do in whatever order, every count returns to zero and every slot is given back."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from pathlib import Path

from harness.around import Around
from harness.virtual_time import settle
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.gateway.routing.building import World, call, key, one, table, targets, virtual

from gateway.core.errors import GatewayError, Unreachable, UpstreamBusy, UpstreamError, UpstreamFailed
from gateway.core.types import Ask, Priority, Verdict
from gateway.routing import TargetSlots
from gateway.store import StoreDown
from gateway.store.local import LocalStore

ERRORS: dict[str, UpstreamError] = {
    "fail": UpstreamFailed("500"),
    "cut": Unreachable("away"),
    "shed": UpstreamBusy("429", retry_after=0.3),
}
STEPS = (
    "call",
    "call",
    "call",
    "low call",
    "other call",
    "first",
    "good",
    "leave",
    "crash",
    "wait",
    "away",
    "drain",
    *ERRORS,
)


class Slow(Around):
    """Limits that take their time, and hands back what nobody waits for any more, as that in Redis does."""

    away = False

    async def admit(self, ask: Ask) -> Verdict:
        verdict = await self.inner.admit(ask)
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.settle(ask, verdict.at, [1])
            raise
        if self.away:
            self.settle(ask, verdict.at, [1])
            raise StoreDown("away")
        return verdict


def slow() -> Slow:
    return Slow(LocalStore(Path("/nowhere/state.json"), now=asyncio.get_running_loop().time).limits)


class Storm:
    """Calls as tasks that do what they are told when they have an attempt."""

    def __init__(self) -> None:
        self.limits = slow()
        text = table(
            r={
                "targets": targets("a", "b", max_inflight=2),
                "fallback": targets("c", max_inflight=1),
                "retry": {"attempts": 3},
                "queue": {"calls": 3, "wait": "1s"},
                "fallback_route": "other",
            },
            other={"targets": targets("d"), "queue": {"calls": 2, "wait": "500ms"}},
        )
        self.of = World(text, limits=self.limits)
        self.calls: list[tuple[asyncio.Task[None], asyncio.Queue[str]]] = []
        self.most: dict[str, int] = {}

    async def _serve(self, number: int, model: str, priority: Priority, orders: asyncio.Queue[str]) -> None:
        attempts = self.of.attempts(call(model, id=f"c{number}"), tokens=100, who=key(priority))
        async with aclosing(attempts):
            async for attempt in attempts:
                running = attempt.target.load.running
                assert attempt.target.max_inflight is None or running <= attempt.target.max_inflight
                while (order := await orders.get()) not in ERRORS:
                    if order == "first":
                        attempt.first_token()
                    elif order == "good":
                        attempt.answered(None)
                        return
                    elif order == "crash":
                        raise ZeroDivisionError
                attempt.failed(ERRORS[order])

    def step(self, what: str, which: int) -> None:
        if what.endswith("call"):
            priority: Priority = "low" if what.startswith("low") else "normal"
            orders: asyncio.Queue[str] = asyncio.Queue()
            model = "other" if what.startswith("other") else "r"
            task = asyncio.create_task(self._serve(len(self.calls), model, priority, orders))
            self.calls.append((task, orders))
        elif what == "away":
            self.limits.away = not self.limits.away
        elif what == "drain":
            target = self.of["abcd"[which % 4]]
            target.ordered("open" if target.order == "drained" else "drained", target.order_version + 1)
        elif self.calls:
            task, orders = self.calls[which % len(self.calls)]
            if what == "leave":
                task.cancel()
            else:
                orders.put_nowait(what)

    async def end(self) -> None:
        for task, _ in self.calls:
            task.cancel()
        for task, _ in self.calls:
            with suppress(asyncio.CancelledError, GatewayError, ZeroDivisionError):
                await task


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.sampled_from([0, 0, 1, 1, 9])), max_size=60))
@virtual
async def test_all_counts_return_to_zero(steps: list[tuple[str, int, int]]) -> None:
    """A pause of 5 ms leaves calls where they are while their slot is being taken."""
    storm = Storm()
    for what, which, pause in steps:
        if what == "wait":
            await asyncio.sleep(0.4)
        storm.step(what, which)
        if pause == 1:
            await settle()
        elif pause:
            await asyncio.sleep(0.005)
    await storm.end()
    await settle()
    storm.of.idle()
    assert storm.of.queued == [] or storm.of.queued[-1][1:] == (0, 0)
    storm.limits.away = False
    slots = TargetSlots(storm.limits)
    for name, most in (("a", 2), ("b", 2), ("c", 1)):
        taken = [await slots.take(storm.of[name], f"after {n}") for n in range(most + 1)]
        assert [slot is not None for slot in taken] == [True] * most + [False], f"slots of {name}"


@virtual
async def test_a_client_that_leaves_while_its_slot_is_taken_keeps_nothing() -> None:
    limits = slow()
    of = World(one(targets=targets("a", max_inflight=1)), limits=limits)
    leaves = asyncio.create_task(of.tried(call(id="c0")))
    await asyncio.sleep(0.005)
    assert of["a"].load.running == 1
    leaves.cancel()
    await settle()
    of.idle()
    began = of.clock()
    calls, _ = await of.first(call(id="c1"))
    assert of.clock() == began + 0.01
    await calls.aclose()


@virtual
async def test_a_store_that_fails_in_an_unknown_way_leaks_nothing() -> None:
    class Broken(Around):
        async def admit(self, ask: Ask) -> Verdict:
            raise ZeroDivisionError

    of = World(one(targets=targets("a", max_inflight=1)), limits=Broken(None))
    for _ in range(2):
        with suppress(ZeroDivisionError):
            await of.tried()
        of.idle()


@virtual
async def test_a_thousand_calls_at_once_all_end() -> None:
    """Half of them leave at some time; the rest is served, and nobody waits for nothing."""
    of = World(one(targets=targets("a", "b", max_inflight=20), queue={"calls": 2000, "wait": "9s"}))
    served = 0

    async def ask(number: int) -> None:
        nonlocal served
        calls, attempt = await of.first(call(id=f"c{number}"))
        async with aclosing(calls):
            await asyncio.sleep(0.05)
            attempt.first_token()
            await asyncio.sleep(0.05)
            served += 1

    tasks = [asyncio.create_task(ask(number)) for number in range(1000)]
    for number, task in enumerate(tasks):
        if number % 2:
            asyncio.get_running_loop().call_later(number / 1000, task.cancel)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [error for error in ended if isinstance(error, Exception)]
    assert served == sum(error is None for error in ended) >= 500
    assert of.clock() < 0.1 * 1000 / 40 + 0.2
    of.idle()
