"""Engines that are always full, with prompts of 100,000 tokens and steps of seconds: honest, none is taken for hung.

Virtual time: the engine's steps, the looks at it and what the gateway makes of them are the real ones; nothing waits.
"""

from __future__ import annotations

import random
from itertools import count

import pytest

from backends.api import Gauges
from gateway.faults.engine import Engine, Shape, Work
from gateway.targets import progress
from gateway.targets.engines import EVERY_SECONDS
from gateway.targets.progress import Progress

HOUR = 3600.0
PROMPT, ANSWER = 100_000, 200
CALLS = 12
"""At the gateway at any time: more than the engine can work on."""


class Hour:
    """An engine whose full step takes so many seconds, and what looks at it have seen."""

    def __init__(self, seconds: float, seed: int, *, calls: int = CALLS) -> None:
        shape = Shape(rate=8192 / seconds, step=0.01, batch=8192, kv_tokens=500_000)
        self.engine, self.progress, self.chance = Engine(shape), Progress(), random.Random(seed)
        self.names, self.heard_at, self.now, self.ended = count(), float("-inf"), 0.0, 0
        self.found: list[float] = []
        """When it was taken for hung."""
        self.words = 0
        """Steps that made some: vLLM counts no others."""
        for _ in range(calls):
            self.call()

    def call(self) -> None:
        """One more, of a prompt that nobody has sent before; some do not stream."""
        prompt = [(next(self.names), PROMPT)]
        self.engine.add(Work(prompt, ANSWER, self.heard, streams=self.chance.random() < 0.7))

    def heard(self, work: Work) -> None:
        self.heard_at = self.now
        if work.ended:
            self.ended += 1
            self.call()

    def gauges(self) -> Gauges:
        """As vLLM tells them between two steps: its cache fills as prompts are read."""
        engine = self.engine
        unread = sum(work.left for work in engine._reading)
        full = (engine.cache.kept_tokens - unread) / engine.shape.kv_tokens
        return Gauges(
            running=engine.running, waiting=len(engine.waiting), kv_usage=full, prefix_queries=engine.queried,
            steps=self.words,
        )  # fmt: skip

    def pass_by(self, until: float) -> None:
        """Steps and looks, each when it is due."""
        step_ends, look_at = 0.0, self.chance.uniform(*EVERY_SECONDS)
        told = self.gauges()
        while self.now < until:
            if step_ends <= look_at:
                self.now = step_ends
                if self.now:
                    writing = bool(self.engine.writing)
                    self.engine.end()
                    self.words += writing or self.heard_at == self.now
                told = self.gauges()
                seconds = self.engine.begin()
                assert seconds is not None, "it is never idle"
                step_ends = self.now + seconds
            else:
                self.now = look_at
                if self.progress.look(told, CALLS, self.heard_at, self.now):
                    self.found.append(self.now)
                look_at = self.now + self.chance.uniform(*EVERY_SECONDS)


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_engine_is_never_taken_for_hung(seed: int) -> None:
    hour = Hour(4.9, seed)
    hour.pass_by(HOUR)
    assert hour.found == []
    assert hour.ended >= HOUR / 4.9 * 8192 / PROMPT / 3, "it worked all the time"


def test_alone_with_one_call_it_is_not_either() -> None:
    """A prompt that is read for a minute, with no word of anybody meanwhile."""
    hour = Hour(4.9, 0, calls=1)
    hour.pass_by(HOUR)
    assert hour.found == [] and hour.ended > 20


def test_steps_of_four_seconds_would_be_ejected_with_patience_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is five: steps of some 8,000 tokens with 100,000 before them take so long on GPUs that many have."""
    monkeypatch.setattr(progress, "SECONDS", 3.0)
    hours = [Hour(4.0, seed) for seed in range(3)]
    for hour in hours:
        hour.pass_by(HOUR)
    assert all(hour.found for hour in hours)


def test_one_whose_steps_are_longer_is_taken_for_hung_at_most_twice() -> None:
    """After that it is given twice its longest step."""
    for seed in range(3):
        hour = Hour(8.0, seed)
        hour.pass_by(HOUR)
        assert 1 <= len(hour.found) <= 2, hour.found


def test_one_that_stops_in_that_hour_is_found_within_ten_seconds() -> None:
    for seed in range(20):
        hour = Hour(4.9, seed)
        hour.pass_by(HOUR / 40)
        told, stopped, now = hour.gauges(), hour.now, hour.now
        while not hour.progress.look(told, CALLS, hour.heard_at, now):
            now += hour.chance.uniform(*EVERY_SECONDS)
        assert now - stopped <= 10.0
