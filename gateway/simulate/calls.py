"""Calls as workloads make them: what routing knows of them, and what an engine would have in its cache of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from gateway.faults.engine import Segment
from gateway.routing.policies.api import Prompt


class Asked(Prompt, frozen=True):
    """A prompt whose text is known: policies that see into caches need it."""

    segments: tuple[Segment, ...] = ()


class Call:
    """One call, the same for every policy: nothing that happens to it is written here."""

    __slots__ = ("after", "answer", "draw", "next", "prompt")

    def __init__(self, after: float, prompt: Asked, answer: int, draw: float) -> None:
        self.after = after
        """Seconds since the beginning, or since the end of the call that it follows."""
        self.prompt = prompt
        self.answer = answer
        """Tokens of the answer."""
        self.draw = draw
        """Between 0 and 1: which gateway the call comes to."""
        self.next: tuple[Call, ...] = ()
        """What follows when it has been answered."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The prompt's text."""
        return self.prompt.segments


Make = Callable[[Random, float, float], list[Call]]
"""Makes the calls of a workload, those that follow no other: from a source of chance, calls a second and seconds."""


def key(rng: Random) -> int:
    """A hash of 64 bits, never 0."""
    return rng.getrandbits(64) | 1


def count(calls: list[Call]) -> int:
    """All calls, those that follow others included."""
    total, left = 0, list(calls)
    while left:
        call = left.pop()
        total += 1
        left.extend(call.next)
    return total
