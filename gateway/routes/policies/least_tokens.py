"""The target with less to read: of two at random, the one whose outstanding prompt tokens cost less time."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gateway.routes.policies.api import Candidate, Prompt, Score, cheapest, ripe


class LeastTokens:
    """Power of two choices (Mitzenmacher, 2001), so that gateways that see the same load do not all run to one target.

    Two are drawn in proportion to their weights; between equals the one with fewer calls running goes first.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._random = Random(seed)  # noqa: S311 - no secret

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        drawn = self._drawn([ripe(targets[place], now) for place in usable], usable)
        scores = []
        for place in drawn:
            load, weight = targets[place].load, targets[place].weight
            running = (load.running + load.others_running) / (1e6 * weight)
            scores.append(Score(place, (load.pending(now) + prompt.tokens) / weight + running, reason="least"))
        return scores

    def pick(self, scores: Sequence[Score]) -> Score:
        return cheapest(scores)

    def _drawn(self, weights: Sequence[float], usable: Sequence[int]) -> Sequence[int]:
        if len(usable) <= 2:
            return self._random.sample(usable, len(usable))
        first, second = self._random.choices(usable, weights, k=2)
        while first == second:
            second = self._random.choices(usable, weights)[0]
        return first, second
