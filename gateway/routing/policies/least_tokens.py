"""The target with less to read: of two at random, the one whose outstanding prompt tokens cost less time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from gateway.routing.policies.api import Candidate, Prompt, Score, cheapest, ripe


class LeastTokens:
    """Power of two choices (Mitzenmacher, 2001), so that gateways that see the same load do not all run to one target.

    Two are drawn in proportion to their weights; between equals the one with fewer calls running goes first.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._random = Random(seed)  # noqa: S311 - no secret
        self._luck = self._random.random(), self._random.random()  # the next call's: to look changes nothing

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        drawn = self._drawn([ripe(targets[place], now) for place in usable], usable)
        scores = []
        for place in drawn:
            load, weight = targets[place].load, targets[place].weight
            running = (load.running + load.others_running) / (1e6 * weight)
            scores.append(Score(place, (load.pending(now) + prompt.tokens) / weight + running, reason="least"))
        return scores

    def pick(self, scores: Sequence[Score]) -> Score:
        self._luck = self._random.random(), self._random.random()
        return cheapest(scores)

    def _drawn(self, weights: list[float], usable: Sequence[int]) -> Sequence[int]:
        """Two of `usable`, each drawn in proportion to its weight."""
        if len(usable) <= 2:
            return usable if self._luck[0] < 0.5 else usable[::-1]  # of equals the first is picked
        first = _drawn(weights, self._luck[0])
        weights[first] = 0.0
        return usable[first], usable[_drawn(weights, self._luck[1])]


def _drawn(weights: Sequence[float], luck: float) -> int:
    """A place in `weights`; `luck` is uniform in [0, 1)."""
    sums = list(accumulate(weights))
    return bisect_right(sums, luck * sums[-1], hi=len(sums) - 1)
