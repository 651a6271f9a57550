"""Agents at work: loops of calls that a program makes, each with all that went before and a tool's answer."""

from __future__ import annotations

from random import Random
from typing import Final

from gateway.simulate.calls import Call, key
from gateway.simulate.patterns import arrivals, following, opening

KINDS: Final = 12
"""Agents with tools and a system prompt of their own, some much more in use than others."""
TOOLS: Final = (3000, 9000)
TASK: Final = (200, 1500)
STEPS: Final = (4, 20)
STEP: Final = (150, 1200)
TOOL_SECONDS: Final = 1.5
FAN_OUT: Final = 0.2
"""How likely a step has work done in parallel."""
BRANCHES: Final = (2, 6)
CALLS: Final = 12 + 12 * FAN_OUT * 4
"""Of one task, in the mean and about."""


def agents(rng: Random, rate: float, seconds: float) -> list[Call]:
    """Tool loops: a long prefix of tools that all tasks of a kind share, then many short follow-ups with no pause
    to speak of; now and then several calls branch at once from what has been said so far."""
    kinds = [(key(rng), rng.randint(*TOOLS)) for _ in range(KINDS)]
    shares = [1 / rank for rank in range(1, KINDS + 1)]
    first = []
    for time in arrivals(rng, rate / CALLS, seconds):
        call = opening(rng, time, rng.choices(kinds, shares)[0], rng.randint(*TASK))
        first.append(call)
        for _ in range(rng.randint(*STEPS) - 1):
            later = following(rng, call, rng.expovariate(1 / TOOL_SECONDS), rng.randint(*STEP))
            call.next = (later, *_branches(rng, call))
            call = later
    return first


def _branches(rng: Random, call: Call) -> list[Call]:
    if rng.random() >= FAN_OUT:
        return []
    return [following(rng, call, rng.random() * 0.05, rng.randint(*STEP)) for _ in range(rng.randint(*BRANCHES))]
