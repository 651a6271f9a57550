"""Among a route's tiers: the best one with room, why none better, and when there may be room again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from msgspec import Struct, structs

from gateway.core.errors import ContextTooLong
from gateway.routing.explain import Candidacy
from gateway.routing.features import SURE
from gateway.routing.filters import BUSY, COLD, DOWN, EJECTED, LENIENCES, NOTHING, Filter, refusal
from gateway.routing.policies.api import Prompt, Score
from gateway.routing.tier import Outlook, Tier
from gateway.targets.load import Load
from gateway.targets.target import UNBOUNDED, Target

_ANY_CALL = Prompt(tokens=1)
_UP = (None, *BUSY)


class Chosen(Struct, frozen=True):
    """The best tier with room and its usable places; without places all are only busy, without a tier none can."""

    tier: Tier | None = None
    usable: Sequence[int] = ()
    overlooked: tuple[Filter, ...] = NOTHING


class Chooser:
    """The tiers of the route `name`, the best first; `clock` is monotonic."""

    def __init__(self, name: str, tiers: Sequence[Tier], clock: Callable[[], float]) -> None:
        self.name, self.tiers, self._clock = name, tuple(tiers), clock
        self.targets = [target for tier in self.tiers for target in tier.targets]
        self._longest = self._longest_prompt = UNBOUNDED
        self.measure()

    def measure(self) -> None:
        """Look at the targets' contexts anew."""
        for tier in self.tiers:
            tier.measure()
        self._longest = max((target.context for target in self.targets), default=UNBOUNDED)
        self._longest_prompt = max((target.prompt_limit for target in self.targets), default=UNBOUNDED)

    def choose(self, prompt: Prompt, tried: Collection[Target] = (), *, lenient: bool = True) -> Chosen:
        """The best tier with room among targets not yet `tried`; if `lenient`, what seems to be down is the last."""
        now = self._clock()
        for overlooked in LENIENCES[: (2 if tried else 3) if lenient else 1]:
            for tier in self.tiers:
                if usable := tier.usable(prompt, now, tried, overlooked):
                    return Chosen(tier, usable, overlooked)
            for tier in self.tiers:
                if tier.busy(prompt, now, tried, overlooked):
                    return Chosen(tier)
        return Chosen()

    def fitting(self, prompt: Prompt, *, lenient: bool) -> Chosen:
        """As `choose`, of a prompt as it was read; nothing for one that is too long."""
        try:
            return self.choose(self.fitted(prompt), lenient=lenient)
        except ContextTooLong:
            return Chosen()

    def barred(self, tried: Sequence[Target], spent: Collection[int], begun: Target | None) -> Sequence[Target]:
        """Where a call must not go: where it was, and in tiers whose numbers are `spent`; with an answer that `begun`
        began, wherever it cannot go on.

        It can at targets of the same tier, which serve the same model, whose adapters know how.
        """
        if begun is not None:
            return [*tried, *(each for each in self.targets if each.tier != begun.tier or not each.resumes)]
        return [*tried, *(each for each in self.targets if each.tier in spent)] if spent else tried

    def passed_over(self, prompt: Prompt, chosen: Tier, tried: Collection[Target]) -> str:
        """Why the tiers before `chosen` were not: what most of their targets lack; empty if it is the first."""
        now, names = self._clock(), {target.name for target in tried}
        whys = [
            "failed" if target.name in names else refusal(prompt, target, now) or "canary"
            for tier in self.tiers[: self.tiers.index(chosen)]
            for target in tier.targets
        ]
        return max(whys, key=whys.count, default="")

    def fitted(self, prompt: Prompt) -> Prompt:
        """The prompt; one that seems to fit nowhere, but may, as one for the targets with the largest context.

        Raises `ContextTooLong` for one that cannot, whatever its text is.
        """
        longest, alone = self._longest, self._longest_prompt
        if prompt.context <= longest and prompt.alone <= alone:
            return prompt
        if prompt.least_context <= longest and prompt.alone // SURE <= alone:
            return structs.replace(prompt, context=min(prompt.context, longest), alone=min(prompt.alone, alone))
        raise ContextTooLong(
            f"The prompt would take about {prompt.alone} tokens, with its answer {prompt.context}; "
            f"the largest context that {self.name!r} has is {min(longest, alone)} tokens.",
            param="messages" if prompt.alone > min(longest, alone) else "max_tokens",
        )

    def soonest(self, prompt: Prompt, tried: Collection[Target]) -> float | None:
        """Seconds until any target can have room, if that is known: all have asked for a pause."""
        now, left, names = self._clock(), [], {target.name for target in tried}
        for target in self.targets:
            if target.name in names or (why := refusal(prompt, target, now)) is None:
                continue
            if why == "full":
                return None
            if why == "resting":
                left.append(target.resting_until - now)
        return min(left, default=None)

    def waits_for(self, prompt: Prompt, barred: Collection[int] = ()) -> bool | None:
        """Whether the call could go somewhere only if a target came up: False if one is up, that may be full.

        Tiers whose numbers are `barred` do not count.

        None: nowhere, whatever happens.
        """
        now, waits = self._clock(), None
        try:
            prompt = self.fitted(prompt)
        except ContextTooLong:
            return None
        for target in self.targets:
            if target.tier in barred:
                continue
            if refusal(prompt, target, now, (DOWN, EJECTED)) in _UP:
                return False
            if target.cold and refusal(prompt, target, now, (COLD, DOWN, EJECTED)) in _UP:
                waits = True
        return waits

    def has_room(self, load: Load) -> bool:
        """Whether a target with this load could take any call at all."""
        now = self._clock()
        return any(refusal(_ANY_CALL, target, now) is None for target in self.targets if target.load is load)

    def explain(self, prompt: Prompt, *, decided: bool = False, lenient: bool = True) -> list[Candidacy]:
        """What would be picked now, and why; nothing if it is `decided` elsewhere. Changes nothing that matters."""
        found: list[Candidacy] = []
        with suppress(ContextTooLong):
            prompt = self.fitted(prompt)
        chosen, now = self.choose(prompt, lenient=lenient), self._clock()
        for number, tier in enumerate(self.tiers):
            outlooks = tier.outlooks(prompt, now, chosen.overlooked if tier is chosen.tier else NOTHING)
            scores = [outlook.score for outlook in outlooks if outlook.score is not None]
            picked = bool(scores) and tier is chosen.tier and not decided
            best = min(scores, key=lambda score: score.cost) if picked else None
            found += [_candidacy(self.name, number, tier, outlook, now, best) for outlook in outlooks]
        return found


def _candidacy(route: str, number: int, tier: Tier, outlook: Outlook, now: float, best: Score | None) -> Candidacy:
    target, score = outlook.target, outlook.score
    load = target.load
    return Candidacy(
        route,
        number,
        target.name,
        tier.policy_name,
        outlook.refused,
        None if score is None else round(score.cost, 3),
        0 if score is None else score.cached,
        "" if score is None else score.reason,
        score is not None and score is best,
        target.weight,
        load.running + load.others_running,
        load.waiting + load.others_waiting,
        int(load.pending(now)),
    )
