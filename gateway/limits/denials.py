"""The last denial of each key, answered again before a body is read, for as long as no call of the key can be admitted.

Only what surely lasts is remembered. A rate of requests gives nothing back: each call takes one, and time alone makes
room. A budget that is spent, reservations aside, stays so until its period ends. Tokens a minute and calls at once may
be given back at any moment by calls that end, here or elsewhere, and limits of a model are another model's business.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec import Struct, structs

from gateway.core.types import Ask, Caller, Dimension, Standing, Verdict
from gateway.limits.plan import Terms

MOST_SECONDS: Final = 60.0
"""After which the store is asked again, whatever it said: it may have lost what it knew."""
SURE_PART: Final = 0.99
"""Of the time that the store gave: its clock and ours need not go equally fast."""
MAX_DENIALS: Final = 10_000


class Denial(Struct, frozen=True):
    """What a key was denied, and when."""

    terms: Terms
    ask: Ask
    verdict: Verdict
    asked: float
    """By the monotonic clock, before the store was asked."""
    until: float

    def holds(self, caller: Caller, now: float) -> bool:
        """Whether it is sure that the caller would be denied again: neither its records nor the time have gone on."""
        versions = caller.key.version, 0 if caller.tenant is None else caller.tenant.version
        return now < self.until and versions == tuple(version for _, version in self.ask.plan.records)

    def at(self, now: float) -> Verdict:
        """The verdict as it stands now."""
        passed = now - self.asked
        standings = [Standing(each.remaining, max(0.0, each.reset - passed)) for each in self.verdict.standings]
        return structs.replace(
            self.verdict, standings=standings, retry_after=max(0.0, self.verdict.retry_after - passed)
        )


class Denials(OrderedDict[str, Denial]):
    """By the key's id, the oldest first."""

    def remember(self, key_id: str, denial: Denial) -> None:
        """Keep it, and forget the oldest where there are too many."""
        self.pop(key_id, None)
        self[key_id] = denial
        while len(self) > MAX_DENIALS:
            self.popitem(last=False)


def lasting(terms: Terms, ask: Ask, verdict: Verdict, asked: float, *, all_cost: bool) -> Denial | None:
    """The denial, if every call of the key will be denied for a while; `all_cost`: no call is free of charge."""
    assert verdict.denied is not None
    dimension = ask.plan.dimensions[verdict.denied]
    if not _lasts(dimension, verdict, all_cost=all_cost):
        return None
    return Denial(terms, ask, verdict, asked, asked + SURE_PART * min(MOST_SECONDS, verdict.retry_after))


def _lasts(dimension: Dimension, verdict: Verdict, *, all_cost: bool) -> bool:
    if dimension.scope not in ("key", "tenant"):
        return False
    if dimension.kind == "rate":
        return dimension.unit == "requests"
    return verdict.spent and (dimension.unit != "cost" or all_cost)
