"""Targets that are equally welcome, and the policy among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from msgspec import Struct

from gateway.routing.filters import BUSY, NOTHING, Filter, is_sure, refusal
from gateway.routing.policies import registry
from gateway.routing.policies.api import Gossips, Inherits, Learns, Policy, Prompt, Remembers, Score
from gateway.routing.policies.registry import Factory
from gateway.targets.target import PREFILL_LIMIT, UNBOUNDED, Target


class Outlook(Struct, frozen=True):
    """What a tier says of one target for one call."""

    target: Target
    refused: str = ""
    """Why it cannot take the call; empty: it can."""
    score: Score | None = None
    """What the policy thinks of it, if it was asked."""


class Tier:
    """One policy object for one list of targets."""

    def __init__(
        self,
        targets: Sequence[Target],
        policy: str,
        seed: int = 0,
        policies: Callable[[str], Factory] = registry.load,
    ) -> None:
        self.targets, self.policy_name = tuple(targets), policy
        self.names = [target.name for target in targets]
        self.policy: Policy = policies(policy)(self.names, seed)
        # Asking a protocol whether an object has it costs more than a choice.
        self._memory = self.policy if isinstance(self.policy, Remembers) and len(self.targets) > 1 else None
        self._learner = self.policy if isinstance(self.policy, Learns) else None
        self.gossips = self.policy if isinstance(self.policy, Gossips) else None
        """The policy, if it has something to tell other gateways."""
        heaviest = max((target.weight for target in targets), default=1.0)
        for target in targets:  # weights are relative
            target.prefill_limit = PREFILL_LIMIT * target.weight / heaviest
            target.load.fills(target.prefill_limit)
        self._canaries = [place for place, target in enumerate(targets) if target.canary]
        self._all = list(range(len(self.targets)))
        # Of the other targets it is sure that no filter refuses them, as long as nothing happens to them: many targets
        # then cost calls nothing. Of one with `max_inflight` it never is.
        self._unsure = set(self.targets)
        for target in targets:
            target.unsure = self._unsure
        self._context = UNBOUNDED
        spoken = [frozenset[str](target.endpoints) for target in targets]
        self._spoken = frozenset.intersection(*spoken) | {""} if spoken else frozenset({""})
        """What all of them can be asked for."""
        self.measure()

    @property
    def keyed(self) -> bool:
        """There is a choice for which a prompt's keys matter."""
        return len(self.targets) > 1

    def measure(self) -> None:
        """Look at the targets' contexts anew."""
        self._context = min((target.context for target in self.targets), default=UNBOUNDED)

    def usable(
        self, prompt: Prompt, now: float, tried: Collection[Target] = (), overlooked: Collection[Filter] = NOTHING
    ) -> list[int]:
        """The places of targets that can take the call, in rising order. The list is not to be changed."""
        unsure = self._unsure
        special = prompt.part != 1 or prompt.endpoint not in self._spoken or prompt.only or prompt.lora
        if overlooked or special or prompt.context > self._context:
            places = [
                place for place, each in enumerate(self.targets) if refusal(prompt, each, now, overlooked) is None
            ]
        elif unsure:
            places = [
                place for place, each in enumerate(self.targets) if each not in unsure or self._takes(prompt, each, now)
            ]
        else:
            places = self._all
        if tried:
            names = {target.name for target in tried}  # perhaps of the table before
            places = [place for place in places if self.names[place] not in names]
        return self._split(prompt, places) if self._canaries else places

    def _takes(self, prompt: Prompt, target: Target, now: float) -> bool:
        if refusal(prompt, target, now) is not None:
            return False
        if is_sure(target):
            self._unsure.discard(target)
        return True

    def busy(
        self, prompt: Prompt, now: float, tried: Collection[Target] = (), overlooked: Collection[Filter] = NOTHING
    ) -> bool:
        """Waiting may help: all that a target lacks is room."""
        names = {target.name for target in tried}
        return any(
            refusal(prompt, target, now, overlooked) in BUSY for target in self.targets if target.name not in names
        )

    def pick(self, prompt: Prompt, usable: Sequence[int], now: float) -> Score:
        """The policy's choice among `usable`, which are not none."""
        if len(usable) == 1:
            return self._lone(prompt, usable[0], now)
        return self.policy.pick(self.policy.score(prompt, self.targets, usable, now))

    def placed(self, prompt: Prompt, score: Score) -> None:
        """The call goes to the scored target; its load already has the charge."""
        if self._memory is not None:
            self._memory.placed(prompt, score, self.targets)

    def told(self, prompt: Prompt, score: Score, prompt_tokens: int, cached_tokens: int) -> None:
        """What the target of a placed call reported."""
        if self._learner is not None:
            self._learner.told(prompt, score, prompt_tokens, cached_tokens)

    def inherit(self, predecessor: Tier) -> None:
        """Take over what the tier's predecessor has learned, where the policy is the same."""
        if isinstance(self.policy, Inherits) and type(predecessor.policy) is type(self.policy):
            self.policy.inherit(predecessor.policy, predecessor.names)

    def outlooks(self, prompt: Prompt, now: float, overlooked: Collection[Filter] = NOTHING) -> list[Outlook]:
        """For an explanation: each target, why not, or at which cost. Changes nothing."""
        usable = self.usable(prompt, now, (), overlooked)
        scores: dict[int, Score] = {}
        if len(usable) == 1:
            scores[usable[0]] = self._lone(prompt, usable[0], now)
        elif usable:
            scores = {score.index: score for score in self.policy.score(prompt, self.targets, usable, now)}
        return [
            Outlook(target, self._why_not(prompt, place, usable, now), scores.get(place))
            for place, target in enumerate(self.targets)
        ]

    def _why_not(self, prompt: Prompt, place: int, usable: Sequence[int], now: float) -> str:
        return "" if place in usable else refusal(prompt, self.targets[place], now) or "canary"

    def _lone(self, prompt: Prompt, place: int, now: float) -> Score:
        if len(self.targets) == 1:
            return Score(place, 0.0, reason="only")
        (score,) = self.policy.score(prompt, self.targets, (place,), now)
        return score

    def _split(self, prompt: Prompt, places: list[int]) -> list[int]:
        """Each canary has its part of the conversations to itself; without a key a call is not for canaries."""
        drawn = (prompt.conversation or prompt.session or (1 << 64) - 1) / (1 << 64)
        for place in self._canaries:
            share = self.targets[place].canary
            if drawn < share:
                return [place] if place in places else [each for each in places if each not in self._canaries]
            drawn -= share
        return [place for place in places if place not in self._canaries] or places
