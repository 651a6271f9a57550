"""Each target in turn, smoothly in proportion to its weight (as nginx's weighted round-robin)."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.routing.policies.api import Candidate, Prompt, Score, cheapest, ripe


class RoundRobin:
    """Knows nothing of load and caches: what others are compared with."""

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._credit = [0.0] * len(names)

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        return [Score(place, -self._credit[place] - ripe(targets[place], now), reason="turn") for place in usable]

    def pick(self, scores: Sequence[Score]) -> Score:
        chosen = cheapest(scores)
        before = sum(score.cost + self._credit[score.index] for score in scores)  # minus the sum of their weights
        for score in scores:
            self._credit[score.index] = -score.cost
        self._credit[chosen.index] += before
        return chosen
