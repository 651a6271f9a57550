"""A policy that cannot be: it knows what is in every cache. Others are measured against it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gateway.faults.engine import PrefixCache, blocks
from gateway.routing.policies.api import Candidate, Prompt, Score, cheapest
from gateway.simulate.calls import Asked


class Oracle:
    """The target with the least to read in all, the call included; of load it knows no more than other policies.

    Of equals it takes any, so that gateways with the same view do not all run to the first.
    """

    def __init__(self, caches: Sequence[PrefixCache], names: Sequence[str], seed: int = 0) -> None:
        self._caches = caches
        self._random = Random(seed)  # noqa: S311

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        assert isinstance(prompt, Asked)
        scores, pieces = [], tuple(blocks(prompt.segments))
        first = self._random.randrange(len(usable))
        for place in (*usable[first:], *usable[:first]):
            target, cached = targets[place], self._caches[place].cached(pieces)
            scores.append(Score(place, (target.load.pending(now) + prompt.tokens - cached) / target.weight, cached))
        return scores

    def pick(self, scores: Sequence[Score]) -> Score:
        return cheapest(scores)
