"""Why a target cannot take a call: one class each, asked in this order."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol

from gateway.routing.policies.api import Prompt
from gateway.targets.target import UNBOUNDED, Target

BUSY: Final = frozenset({"resting", "full"})
"""Waiting helps."""


class Filter(Protocol):
    """Says which targets cannot take a call."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        """Why `target` cannot take the call now, in a word; None: as far as this goes it can."""


class Unspoken:
    """Its server has nothing of the kind that the call asks for, nor can that be said in other words."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        return None if prompt.endpoint in target.endpoints or not prompt.endpoint else "endpoint"


class Elsewhere:
    """What the call goes on with, or the LoRA adapter that it asks for, is at another target."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        if prompt.lora and prompt.lora not in (target.facts.loras or ()):
            return "elsewhere"
        return "elsewhere" if prompt.only and prompt.only != target.name else None


class Ordered:
    """An operator has drained or ejected it."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        return None if target.order == "open" else target.order


class Ejected:
    """Its breaker has: calls have failed."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        return None if not target.breaker.ejections or target.breaker.closed else "ejected"


class Cold:
    """It is not there, and the call can be held until it is."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        return "down" if prompt.patient and target.cold else None


class Down:
    """Its health route does not answer, or its engine has put the model away."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        return "down" if target.up is False or target.asleep else None


class TooLong:
    """The call does not fit into its context."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        return "too_long" if prompt.context > target.context or prompt.alone > target.prompt_limit else None


class Resting:
    """It has asked for a pause, or its last place was just taken."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        return target.resting if now < target.resting_until else None


class Full:
    """It has all it can do. Calls that may fill only a part of it find it full earlier."""

    def refuses(self, prompt: Prompt, target: Target, now: float) -> str | None:
        load, part = target.load, prompt.part
        if target.max_inflight is not None:
            inflight = target.inflight
            # Who has none takes a slot even if it is reserved: else gateways would keep the last one for each other.
            reserved = inflight.reserve if inflight.own else 0
            if inflight.all + reserved >= max(1.0, target.max_inflight * part):
                return "full"
        return "full" if load.pending(now) >= target.prefill_limit * part else None


UNSPOKEN, ELSEWHERE, ORDERED, EJECTED, COLD, DOWN = Unspoken(), Elsewhere(), Ordered(), Ejected(), Cold(), Down()
TOO_LONG, RESTING, FULL = TooLong(), Resting(), Full()
FILTERS: Final[tuple[Filter, ...]] = (UNSPOKEN, ELSEWHERE, ORDERED, EJECTED, COLD, DOWN, TOO_LONG, RESTING, FULL)

NOTHING: Final[tuple[Filter, ...]] = ()
LENIENCES: Final = (NOTHING, (DOWN,), (DOWN, EJECTED))
"""What is overlooked when there is nothing better: probes may be wrong, and a last target is better than none."""


def refusal(prompt: Prompt, target: Target, now: float, overlooked: Collection[Filter] = NOTHING) -> str | None:
    """The first reason of a filter that is not overlooked; None: the target can take the call."""
    for each in FILTERS:
        if each not in overlooked and (why := each.refuses(prompt, target, now)) is not None:
            return why
    return None


def is_sure(target: Target) -> bool:
    """Whether no filter will refuse the target, which none does now, until something happens to it; but for calls that
    do not fit into its context, or may fill only a part of it."""
    if target.max_inflight is not None or target.prompt_limit < UNBOUNDED:
        return False
    return (
        not target.breaker.ejections
        and not target.missed
        and target.load.prefill + target.load.others_prefill < target.load.half_full
    )
