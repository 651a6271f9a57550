"""An engine that hangs is found within ten seconds, one that works however hard is never taken for one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from harness.virtual_time import run

from backends.api import Facts, Gauges
from gateway.faults.engine import Segment, Shape, TimedEngine, Work
from gateway.targets.engines import Engines
from gateway.targets.progress import UNCOUNTED_LOOKS, Progress


def told(steps: int | None, kv: float | None = 0.5) -> Gauges:
    return Gauges(running=1, steps=steps, kv_usage=kv)


NOTHING_HEARD = float("-inf")


def looks(progress: Progress, *gauges: Gauges | None, every: float = 1.5, waiting: int = 1) -> list[bool]:
    """What looks at an engine find that says nothing, from now on."""
    return [progress.look(each, waiting, NOTHING_HEARD, 100.0 + number * every) for number, each in enumerate(gauges)]


def test_it_hangs_after_three_looks_without_progress() -> None:
    assert looks(Progress(), *[told(7)] * 6) == [False, False, False, False, True, False]


def test_looks_in_haste_are_not_enough() -> None:
    assert not any(looks(Progress(), *[told(7)] * 20, every=0.1))


@pytest.mark.parametrize(
    "gauges",
    [
        [told(steps) for steps in range(1, 9)],
        [told(7, kv / 10) for kv in range(8)],
        [told(0)] * 8,
        [None] * 8,
        [told(7), None, None, None, None, None, None, None],
        [told(7), *[told(0)] * 7],
        [Gauges(steps=7, asleep=True)] * 8,
    ],
    ids=["steps", "its cache fills", "a first compilation", "tells nothing", "is not there", "began anew", "asleep"],
)
def test_what_is_no_hang(gauges: list[Gauges | None]) -> None:
    assert not any(looks(Progress(), *gauges))


def test_who_has_nothing_to_do_does_not_hang() -> None:
    progress = Progress()
    assert not any(looks(progress, *[told(7)] * 8, waiting=0))
    assert not progress.look(told(7), 1, NOTHING_HEARD, 200.0), "the first call has just come"


def test_words_are_progress() -> None:
    progress = Progress()
    assert not any(progress.look(told(7), 1, now - 1.0, now) for now in map(float, range(100, 120)))


def test_progress_ends_it_and_silence_does_not() -> None:
    progress = Progress()
    assert looks(progress, *[told(7)] * 5)[-1] and progress.hung
    assert not progress.look(told(7), 0, NOTHING_HEARD, 120.0) and progress.hung
    assert not progress.look(told(8), 0, NOTHING_HEARD, 121.0) and not progress.hung


def test_what_it_took_to_compile_teaches_no_patience_with_steps() -> None:
    """Its first word comes in the middle of a look, whose counter does not have it yet."""
    progress = Progress()
    for second in range(100, 160):
        assert not progress.look(told(0), 1, NOTHING_HEARD, float(second))
    assert not progress.look(told(0), 1, 160.0, 160.5)
    assert not progress.look(told(1), 1, 160.0, 162.0)
    assert any(progress.look(told(1), 1, 160.0, now) for now in (163.5, 165.0, 166.5, 168.0)), "it stands still"


def test_an_engine_whose_steps_are_longer_is_taken_for_hung_once() -> None:
    progress, found = Progress(), 0
    for number in range(200):
        found += progress.look(told(7 + number // 8), 1, NOTHING_HEARD, 1.5 * number)  # a step takes 12 s
    assert found == 1 and not progress.hung


def test_without_a_counter_its_own_pauses_decide() -> None:
    progress, now = Progress(), 0.0
    for _ in range(UNCOUNTED_LOOKS + 1):
        for step in range(1, 11):  # it says something every 15 s
            assert not progress.look(None, 1, now if step == 10 else NOTHING_HEARD, now)
            now += 1.5
    silent_since = now
    while not progress.look(None, 1, NOTHING_HEARD, now):
        now += 1.5
    assert 40 <= now - silent_since <= 50, "three of its pauses"


class Watched:
    """Timed engines, looked at as the gateway does."""

    def __init__(self, *shapes: Shape) -> None:
        self.engines = {str(number): TimedEngine(shape) for number, shape in enumerate(shapes)}
        self.progress = {name: Progress() for name in self.engines}
        self.waiting = dict.fromkeys(self.engines, 0)
        self.heard_at = dict.fromkeys(self.engines, float("-inf"))
        self.hung: dict[str, float] = {}
        self.looks = Engines(list(self.engines), self, asyncio.get_running_loop().time)
        self.looks.open()

    def ask(self, name: str, prompt: Segment, answer: int, streams: bool, ended: Callable[[], Any]) -> None:
        def heard(work: Work) -> None:
            if streams or work.ended:
                self.heard_at[name] = asyncio.get_running_loop().time()
            if work.ended:
                self.waiting[name] -= 1
                ended()

        self.waiting[name] += 1
        self.engines[name].add(Work([prompt], answer, heard, streams=streams))

    async def read_gauges(self, name: str) -> Gauges | None:
        engine, now = self.engines[name], asyncio.get_running_loop().time()
        used = engine.cache.kept_tokens / engine.shape.kv_tokens
        gauges = Gauges(steps=engine.steps, prefix_queries=engine.queried, kv_usage=used)
        if self.progress[name].look(gauges, self.waiting[name], self.heard_at[name], now):
            self.hung.setdefault(name, now)
        return gauges

    async def read_facts(self, name: str) -> Facts | None:
        return None

    def gauges_read(self, name: str, gauges: Gauges | None) -> None: ...
    def facts_read(self, name: str, facts: Facts) -> None: ...


def saturate(watched: Watched, name: str, chance: Random, tokens: int, callers: int) -> None:
    """Callers who ask again as soon as they are answered, half of them for streams."""

    def ask(number: int, turn: int) -> None:
        size = chance.randint(tokens // 2, tokens)
        answer = chance.randint(1, 400)
        watched.ask(name, (number << 20 | turn, size), answer, number % 2 == 0, lambda: ask(number, turn + 1))

    for number in range(callers):
        ask(number, 0)


def test_a_saturated_engine_is_never_taken_for_one_that_hangs() -> None:
    """An hour of prompts of up to 100,000 tokens, more than fit; slow engines and fast ones."""

    async def hour() -> tuple[dict[str, float], list[int]]:
        watched = Watched(*[Shape(kv_tokens=400_000, rate=rate) for rate in (2_000, 33_000)])
        for name in watched.engines:
            saturate(watched, name, Random(int(name)), 100_000, 40)
        await asyncio.sleep(3600)
        await watched.looks.close()
        return watched.hung, [engine.steps for engine in watched.engines.values()]

    hung, steps = run(hour())
    assert not hung and min(steps) > 500, (hung, steps)


def test_each_of_twenty_that_are_stopped_under_load_is_out_within_ten_seconds() -> None:
    async def stopped() -> dict[str, float]:
        chance = Random(5)
        watched = Watched(*[Shape()] * 40)
        began = {}
        for name in watched.engines:
            saturate(watched, name, chance, 2_000, 12)
        for name in list(watched.engines)[::2]:
            await asyncio.sleep(chance.random())
            watched.engines[name].stop()
            began[name] = asyncio.get_running_loop().time()
        await asyncio.sleep(12)
        await watched.looks.close()
        return {name: at - began[name] for name, at in watched.hung.items()}

    after = run(stopped())
    assert sorted(map(int, after)) == list(range(0, 40, 2)), "all that are stopped, and no other"
    assert min(after.values()) >= 3 and max(after.values()) <= 10, after


def test_one_that_goes_on_is_back_after_progress() -> None:
    async def stopped() -> tuple[bool, bool]:
        watched = Watched(Shape())
        saturate(watched, "0", Random(1), 2_000, 4)
        await asyncio.sleep(5)
        watched.engines["0"].stop()
        await asyncio.sleep(30)
        hung = watched.progress["0"].hung
        watched.engines["0"].stop(False)
        await asyncio.sleep(3)
        await watched.looks.close()
        return hung, watched.progress["0"].hung

    assert run(stopped()) == (True, False)
