"""Each session to its own target as long as that is there, whatever its load."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.routing.policies.api import Candidate, Prompt, Score, ripe
from gateway.routing.policies.least_tokens import LeastTokens
from gateway.routing.rendezvous import Rendezvous


class Session:
    """Strict rendezvous hashing of the session the client named, else of the conversation; without either by load."""

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._rendezvous = Rendezvous(names)
        self._keyless = LeastTokens(names, seed)

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        key = prompt.session or prompt.conversation
        if key is None:
            scores = self._keyless.score(prompt, targets, usable, now)
            for score in scores:
                score.reason = "no_key"
            return scores
        order = self._rendezvous.order(key, usable, [ripe(target, now) for target in targets])
        return [Score(place, float(rank), reason="spill" if rank else "session") for rank, place in enumerate(order)]

    def pick(self, scores: Sequence[Score]) -> Score:
        return self._keyless.pick(scores)
