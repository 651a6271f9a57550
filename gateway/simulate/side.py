"""One simulated gateway: the policy and the loads it would have, and what it tells others and hears of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from gateway.routes.load import Load, Share, Told
from gateway.routes.policies.api import Learns, Note, Policy, Prompt, Remembers, Score, Tells
from gateway.simulate.replica import Replica


class Target(Struct):
    """A replica as one gateway sees it: a policy's candidate."""

    name: str
    weight: float
    kv_tokens: int
    load: Load
    since: float = -math.inf


class Words(Struct):
    """What a gateway published."""

    at: float
    told: list[Told]
    notes: list[Note]


class Side:
    """A gateway's side of routing."""

    def __init__(self, name: str, policy: Policy, replicas: Sequence[Replica]) -> None:
        self.name = name
        self.targets = tuple(Target(each.name, each.weight, each.kv_tokens, Load()) for each in replicas)
        self.words: Words | None = None
        """The last it published."""
        self._policy = policy
        self._usable = range(len(replicas))
        self._remembers = policy if isinstance(policy, Remembers) else None
        self._learns = policy if isinstance(policy, Learns) else None
        self._tells = policy if isinstance(policy, Tells) else None
        self._heard: dict[str, float] = {}

    def place(self, prompt: Prompt, now: float) -> tuple[Score, Share]:
        """Pick a target and take a share of its load, in the order of the real route."""
        targets, policy = self.targets, self._policy
        score = policy.pick(policy.score(prompt, targets, self._usable, now))
        share = Share(targets[score.index].load, prompt.tokens - score.cached)
        if self._remembers is not None:
            self._remembers.placed(prompt, score, targets)
        return score, share

    def end(self, prompt: Prompt, score: Score, share: Share, cached: int) -> None:
        """The answer is complete, and its usage was told."""
        share.end()
        if self._learns is not None:
            self._learns.told(prompt, score, prompt.tokens, cached)

    def exchange(self, sides: Sequence[Side], now: float) -> None:
        """Publish, then read what the others last published, each note once."""
        self.words = Words(
            now, [target.load.tells() for target in self.targets], self._tells.notes() if self._tells else []
        )
        others = [(side.name, side.words) for side in sides if side is not self and side.words is not None]
        for place, target in enumerate(self.targets):
            told: Mapping[str, tuple[Told, float]] = {
                name: (words.told[place], now - words.at) for name, words in others
            }
            target.load.told(told, now)
        if self._tells is not None:
            for name, words in others:
                if words.notes and self._heard.get(name) != words.at:
                    self._tells.heard(words.notes, self.targets)
                self._heard[name] = words.at
