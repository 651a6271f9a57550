"""The policy to compare with: `cache_aware` of sglang's router 0.3, after its published description and defaults.

It keeps a tree of the prompts that each target was sent, and sends a call where the longest beginning of its prompt
went before, if that is more than a third of it; else to the target with the smallest tree. While one target has far
more calls than another, the one with the fewest gets all. `make test-engines` runs the router itself where it is
installed; this model of it is for `trunkline simulate`, which has no sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.routing.policies.api import Candidate, Prompt, Score
from gateway.simulate.calls import Asked

MATCH: Final = 0.3
"""The part of a prompt that must have been seen (its `cache_threshold`)."""
APART, TIMES = 64, 1.5
"""Calls running at the busiest target beyond those at the idlest, and times as many, that make it look at load only
(its `balance_abs_threshold` and `balance_rel_threshold`)."""


class CacheAware:
    """One router's view: calls it has running at each target, and which prompts went where."""

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._seen: dict[int, list[int]] = {}
        """For each piece of prompts the targets that were sent it, the first first."""
        self._sizes = [0] * len(names)

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        running = {place: targets[place].load.running for place in usable}
        idlest = min(usable, key=running.__getitem__)
        most, least = max(running.values()), running[idlest]
        if most - least > APART and most > TIMES * least:
            return [Score(idlest, 0.0)]
        assert isinstance(prompt, Asked)
        matched, owner = 0, -1
        for segment, size in prompt.segments:
            owners = [place for place in self._seen.get(segment, ()) if place in running]
            if not owners:
                break
            matched, owner = matched + size, owners[0]
        if matched <= MATCH * prompt.tokens:
            owner = min(usable, key=self._sizes.__getitem__)
        return [Score(owner, 0.0, min(matched, prompt.tokens - 1))]

    def pick(self, scores: Sequence[Score]) -> Score:
        return scores[0]

    def placed(self, prompt: Prompt, score: Score, targets: Sequence[Candidate]) -> None:
        assert isinstance(prompt, Asked)
        for segment, size in prompt.segments:
            owners = self._seen.setdefault(segment, [])
            if score.index not in owners:
                owners.append(score.index)
                self._sizes[score.index] += size
