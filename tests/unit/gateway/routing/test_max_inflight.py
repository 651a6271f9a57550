"""`max_inflight`: exact over all gateways, given back on every ending, shared out while the store is down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.around import Around
from unit.gateway.routing.building import World, call, one, targets, virtual

from gateway.core.types import Ask, Verdict
from gateway.routing import TargetSlots
from gateway.store import StoreDown
from gateway.store.local import LocalStore
from gateway.store.local.limits import LocalLimits
from gateway.targets import Target


def target(most: int = 3) -> Target:
    return World(one(targets=targets("a", max_inflight=most)))["a"]


def limits(clock: Callable[[], float] = lambda: 1000.0) -> LocalLimits:
    return LocalStore(Path("/nowhere/state.json"), now=clock).limits


class Down(Around):
    """Limits that do not answer."""

    async def admit(self, ask: Ask) -> Verdict:
        raise StoreDown("away")


async def test_all_gateways_together_never_have_more() -> None:
    shared, gave = limits(), []
    gateways = [(TargetSlots(shared), target(3)) for _ in range(2)]
    for number in range(4):
        slots, each = gateways[number % 2]
        gave.append(await slots.take(each, f"c{number}"))
    assert [slot is not None for slot in gave] == [True, True, True, False]


async def test_a_slot_given_back_is_there_for_anybody() -> None:
    shared = limits()
    one_gateway, other = TargetSlots(shared), TargetSlots(shared)
    first = await one_gateway.take(target(1), "c0")
    assert first is not None and await other.take(target(1), "c1") is None
    first()
    first()
    assert await other.take(target(1), "c1") is not None
    assert await one_gateway.take(target(1), "c2") is None, "given back twice, it still was one"


async def test_targets_have_slots_of_their_own() -> None:
    of = World(one(targets=targets("a", "b", max_inflight=1)))
    slots = TargetSlots(limits())
    assert await slots.take(of["a"], "c0") is not None
    assert await slots.take(of["b"], "c0") is not None
    assert await slots.take(of["a"], "c1") is None


async def test_a_bound_that_a_reload_lowered_holds_at_once() -> None:
    shared = limits()
    for number in range(3):
        await TargetSlots(shared).take(target(5), f"c{number}")
    assert await TargetSlots(shared).take(target(2), "c4") is None
    assert await TargetSlots(shared).take(target(4), "c4") is not None


@pytest.mark.parametrize(("most", "gateways", "share"), [(8, 4, 2), (8, 3, 2), (2, 4, 1), (8, 0, 8), (8, 1, 8)])
async def test_without_the_store_each_gateway_keeps_to_its_share(most: int, gateways: int, share: int) -> None:
    slots, each, granted = TargetSlots(Down(limits()), lambda: gateways), target(most), 0
    for number in range(most + 1):
        each.inflight.own += 1  # as an attempt has it before it asks for its slot
        if await slots.take(each, f"c{number}") is None:
            each.inflight.own -= 1
        else:
            granted += 1
    assert granted == share


async def test_what_was_taken_without_the_store_is_given_back(tmp_path: Path) -> None:
    """A gateway without Redis, while its state file cannot be read."""
    state, of = tmp_path / "keys.json", target(2)
    slots = TargetSlots(LocalStore(state).limits)
    state.write_text("{ half of it is")
    for number in range(5):
        of.inflight.own += 1
        give_back = await slots.take(of, f"c{number}")
        assert give_back is not None
        give_back()
        of.inflight.own -= 1
    state.unlink()
    taken = [await slots.take(of, f"after {number}") for number in range(3)]
    assert [slot is not None for slot in taken] == [True, True, False]


@virtual
async def test_a_route_never_runs_more_than_the_slots_of_all_gateways() -> None:
    shared = limits(asyncio.get_running_loop().time)
    worlds = [World(one(targets=targets("a", max_inflight=3)), limits=shared) for _ in range(2)]
    running, most = 0, 0

    async def ask(number: int) -> None:
        nonlocal running, most
        calls, _ = await worlds[number % 2].first(call(id=f"c{number}"))
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.1 + number % 3 / 10)
        running -= 1
        await calls.aclose()

    await asyncio.gather(*map(ask, range(30)))
    assert most == 3
    for of in worlds:
        of.idle()
