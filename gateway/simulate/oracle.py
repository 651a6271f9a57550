"""A policy that cannot be: it knows what is in every cache. Others are measured against it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gateway.routes.policies.api import Candidate, Prompt, Score, cheapest
from gateway.simulate.calls import Segment
from gateway.simulate.replica import Replica


class Truth:
    """What only the simulation knows: the text of the call at hand, and all caches."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.segments: tuple[Segment, ...] = ()
        self._caches = [replica.cache for replica in replicas]

    def cached(self, place: int) -> int:
        """Tokens of the call's prompt that this replica would not have to read."""
        return self._caches[place].cached(self.segments)


class Oracle:
    """The target with the least to read in all, the call included; of load it knows no more than other policies.

    Of equals it takes any, so that gateways with the same view do not all run to the first.
    """

    def __init__(self, truth: Truth, seed: int = 0) -> None:
        self._truth = truth
        self._random = Random(seed)  # noqa: S311

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        scores = []
        first = self._random.randrange(len(usable))
        for place in (*usable[first:], *usable[:first]):
            target, cached = targets[place], self._truth.cached(place)
            scores.append(Score(place, (target.load.pending(now) + prompt.tokens - cached) / target.weight, cached))
        return scores

    def pick(self, scores: Sequence[Score]) -> Score:
        return cheapest(scores)
