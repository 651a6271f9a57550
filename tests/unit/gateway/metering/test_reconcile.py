"""Drift between engines and ledger: since the first look, per server, told once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from gateway.metering.reconcile import ALARM_ROUNDS, Reconciler
from gateway.store import StoreDown


class World:
    """Engines and a ledger whose counts a test sets."""

    def __init__(self, targets: dict[str, str]) -> None:
        self.engines: dict[str, tuple[int, int] | Exception | None] = {}
        self.ledger: dict[str, tuple[int, int]] = {}
        self.down = False
        self.asked: list[str] = []
        self.tokens: dict[tuple[str, str], int] = {}
        self.ratios: dict[tuple[str, str], float] = {}
        sides: Any = self
        self.reconciler = Reconciler(lambda: targets, self._counters, sides, self._drift, interval=0.01)

    async def _counters(self, target: str) -> tuple[int, int] | None:
        self.asked.append(target)
        found = self.engines.get(target)
        if isinstance(found, Exception):
            raise found
        return found

    async def by_target(self) -> dict[str, tuple[int, int]]:
        if self.down:
            raise StoreDown("down")
        return self.ledger

    def _drift(self, target: str, direction: str, tokens: int, ratio: float) -> None:
        self.tokens[target, direction], self.ratios[target, direction] = tokens, ratio

    async def see(self, engine: tuple[int, int] | None, ledger: tuple[int, int], times: int = 1) -> None:
        self.engines["a"], self.ledger["a"] = engine, ledger
        for _ in range(times):
            await self.reconciler.round()

    @property
    def drift(self) -> tuple[int, int]:
        return self.tokens["a", "in"], self.tokens["a", "out"]


@pytest.fixture
def world() -> World:
    return World({"a": "http://a"})


async def test_what_was_before_the_first_look_is_no_drift(world: World) -> None:
    await world.see((5000, 700), (20, 3))
    assert world.drift == (0, 0) and set(world.ratios.values()) == {0.0}
    await world.see((5100, 750), (120, 53))
    assert world.drift == (0, 0)


async def test_drift_has_a_sign_and_a_ratio_for_each_direction(world: World) -> None:
    await world.see((0, 0), (0, 0))
    await world.see((100, 40), (80, 50))
    assert world.drift == (20, -10)
    assert world.ratios == {("a", "in"): 0.2, ("a", "out"): -0.2}
    await world.see((100, 40), (100, 40))
    assert world.drift == (0, 0)


async def test_a_side_that_has_counted_nothing_is_all_drift(world: World) -> None:
    await world.see((0, 0), (0, 0))
    await world.see((100, 0), (0, 60))
    assert world.ratios == {("a", "in"): 1.0, ("a", "out"): -1.0}


@pytest.mark.parametrize("restarted", [(0, 0), (200, 10), (10, 200)])
async def test_an_engine_that_restarts_begins_anew(world: World, restarted: tuple[int, int]) -> None:
    await world.see((100, 100), (100, 100))
    await world.see((150, 150), (150, 150))
    await world.see(restarted, (170, 160))
    assert world.drift == (0, 0)
    await world.see((restarted[0] + 7, restarted[1] + 5), (177, 164))
    assert world.drift == (0, 1)


async def test_a_ledger_that_was_lost_begins_anew(world: World) -> None:
    await world.see((0, 0), (0, 0))
    await world.see((1000, 1000), (1000, 1000))
    await world.see((1100, 1100), (50, 50))
    assert world.drift == (0, 0)
    await world.see((1110, 1110), (60, 60))
    assert world.drift == (0, 0)


async def test_what_cannot_be_seen_stays_as_it_was(world: World) -> None:
    await world.see((0, 0), (0, 0))
    await world.see((100, 100), (90, 90))
    await world.see(None, (95, 95))
    assert world.drift == (10, 10)
    world.down = True
    await world.see((300, 300), (0, 0))
    assert world.drift == (10, 10)
    world.down = False
    await world.see((300, 300), (300, 300))
    assert world.drift == (0, 0)


async def test_targets_of_one_server_are_compared_together() -> None:
    world = World({"base": "http://one", "lora": "http://one/", "other": "http://two"})
    world.engines = {"base": (0, 0), "other": (0, 0)}
    await world.reconciler.round()
    assert sorted(world.asked) == ["base", "other"]
    world.engines = {"base": (100, 10), "other": (5, 5)}
    world.ledger = {"base": (60, 6), "lora": (40, 4), "other": (5, 5)}
    await world.reconciler.round()
    assert set(world.tokens.values()) == {0}
    assert {target for target, _ in world.tokens} == {"base", "other"}


async def test_an_adapter_that_raises_harms_only_its_own_target(caplog: pytest.LogCaptureFixture) -> None:
    world = World({"bad": "http://bad", "a": "http://a"})
    world.engines["bad"] = ValueError("canary-text")
    await world.see((0, 0), (0, 0))
    await world.see((10, 10), (10, 5))
    assert world.drift == (0, 5)
    assert "bad" in caplog.text and "canary" not in caplog.text


async def test_a_drift_that_stays_is_told_once_and_so_is_its_end(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await world.see((0, 0), (0, 0))
    await world.see((100, 100), (100, 94), times=ALARM_ROUNDS - 1)
    await world.see((100, 100), (100, 96))  # within 5 %
    await world.see((100, 100), (100, 94 + 2), times=3)
    assert not caplog.records
    await world.see((200, 200), (200, 150), times=ALARM_ROUNDS - 1)
    assert not caplog.records
    await world.see((200, 200), (200, 150), times=5)
    (told,) = caplog.records
    assert "target a" in told.message and "engine" in told.message and "25 %" in told.message
    await world.see((300, 300), (300, 299), times=5)
    assert len(caplog.records) == 2 and "agree again" in caplog.records[1].message


async def test_it_runs_by_itself_until_it_is_closed(world: World) -> None:
    world.engines["a"], world.ledger["a"] = (0, 0), (0, 0)
    world.reconciler.open()
    async with asyncio.timeout(30):
        while len(world.asked) < 3:
            await asyncio.sleep(0.005)
    await world.reconciler.close()
    seen = len(world.asked)
    await asyncio.sleep(0.05)
    assert len(world.asked) == seen
