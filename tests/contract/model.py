"""The reference: what admission means, written from its definitions, in exact arithmetic, without a thought for speed.

A rate is a leaky bucket: it holds `limit` units, leaks `limit / window` of them a second, and an ask fits that does not
make it spill. A lease is a set of calls with deadlines. A budget is what was spent in a calendar period and what is
still reserved in it. Nothing here is taken from the stores' code. Times are integer microseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import NamedTuple

from contract.wanted import Wanted, wanted

from gateway.core.types import Ask, Period

MICRO = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Answer(NamedTuple):
    """What the model says to an ask."""

    refusing: tuple[int, ...]
    """The dimensions without room; none: it is granted."""
    wait: dict[int, Fraction]
    """Microseconds until there is room, for those of them that can know it."""
    remaining: tuple[int, ...]
    reset: tuple[Fraction | None, ...]
    """Microseconds until it is whole again; None where the definition has nothing to say."""

    @property
    def granted(self) -> bool:
        return not self.refusing


def span(kind: Period, micros: int) -> tuple[date, int]:
    """The first day of the period that holds a moment, and when the next one begins."""
    first = (EPOCH + timedelta(microseconds=micros)).date()
    if kind == "day":
        after = first + timedelta(days=1)
    elif kind == "week":
        first -= timedelta(days=first.weekday())
        after = first + timedelta(days=7)
    else:
        first = first.replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
    return first, (after - EPOCH.date()).days * 86_400 * MICRO


class Bucket:
    """A leaky bucket. `naive` gives every unused unit back, also those that leaked away while the call ran."""

    def __init__(self, dimension: Wanted, naive: bool) -> None:
        self.limit, self.naive = dimension.limit, naive
        self.unit = Fraction(round(dimension.window * MICRO), dimension.limit)
        self.level, self.seen = Fraction(0), 0

    def leak(self, now: int) -> None:
        self.level = max(Fraction(0), self.level - Fraction(now - self.seen) / self.unit)
        self.seen = now

    def short(self, amount: int) -> Fraction:
        """Units that have to leak before the amount fits."""
        return self.level + amount - self.limit

    def settle(self, reserved: int, used: int, granted: int, now: int) -> None:
        self.leak(now)
        if used >= reserved:
            self.level += used - reserved
            return
        leaked = Fraction(now - granted) / self.unit
        back = Fraction(reserved - used)
        if not self.naive:
            back = min(back, max(Fraction(0), reserved - leaked))
        self.level = max(Fraction(0), self.level - back)


class Slots:
    """Calls in flight, each until its deadline."""

    def __init__(self) -> None:
        self.deadlines: dict[str, int] = {}

    def held(self, now: int) -> int:
        return sum(deadline > now for deadline in self.deadlines.values())


class Purse:
    """A budget: spent by period, and reservations by call."""

    def __init__(self, kind: Period) -> None:
        self.kind: Period = kind
        self.spent: dict[date, int] = {}
        self.reserved: dict[str, tuple[date, int, int]] = {}
        """By call: the period, the units, the deadline."""

    def settled(self, now: int) -> int:
        return self.spent.get(span(self.kind, now)[0], 0)

    def open(self, now: int) -> int:
        period = span(self.kind, now)[0]
        return sum(units for first, units, deadline in self.reserved.values() if first == period and deadline > now)


class Model:
    """All dimensions of all asks; `hold` is how many microseconds leases and reservations outlive a dead worker."""

    def __init__(self, hold: int, *, naive: bool = False) -> None:
        self.hold, self.naive = hold, naive
        self.buckets: dict[str, Bucket] = {}
        self.slots: dict[str, Slots] = {}
        self.purses: dict[str, Purse] = {}
        self.ended: set[str] = set()

    def bucket(self, dimension: Wanted) -> Bucket:
        return self.buckets.setdefault(dimension.key, Bucket(dimension, self.naive))

    def lease(self, dimension: Wanted) -> Slots:
        return self.slots.setdefault(dimension.key, Slots())

    def purse(self, dimension: Wanted) -> Purse:
        assert dimension.period is not None
        return self.purses.setdefault(dimension.key, Purse(dimension.period))

    def admit(self, ask: Ask, now: int) -> Answer:
        refusing, wait = [], {}
        for index, dimension in enumerate(wanted(ask)):
            fits, known = self._fits(dimension, now)
            if not fits:
                refusing.append(index)
                if known is not None:
                    wait[index] = known
        if not refusing:
            for dimension in wanted(ask):
                self._charge(ask.call_id, dimension, now)
        standings = [self._standing(dimension, now) for dimension in wanted(ask)]
        return Answer(
            tuple(refusing), wait, tuple(left for left, _ in standings), tuple(reset for _, reset in standings)
        )

    def settle(self, ask: Ask, at: int, used: Sequence[int], now: int) -> None:
        if ask.call_id in self.ended:
            return
        self.ended.add(ask.call_id)
        for dimension, units in zip(wanted(ask), used, strict=True):
            if dimension.kind == "rate":
                self.bucket(dimension).settle(dimension.amount, units, at, now)
            elif dimension.kind == "lease":
                self.lease(dimension).deadlines.pop(ask.call_id, None)
            else:
                purse = self.purse(dimension)
                purse.reserved.pop(ask.call_id, None)
                first = span(purse.kind, at)[0]
                purse.spent[first] = purse.spent.get(first, 0) + units

    def renew(self, ask: Ask, now: int) -> None:
        """The worker of a call says that it lives."""
        for dimension in wanted(ask):
            if dimension.kind == "lease" and self.lease(dimension).deadlines.get(ask.call_id, 0) > now:
                self.lease(dimension).deadlines[ask.call_id] = now + self.hold
            elif dimension.kind == "budget" and ask.call_id in (reserved := self.purse(dimension).reserved):
                first, units, deadline = reserved[ask.call_id]
                if deadline > now:
                    reserved[ask.call_id] = (first, units, now + self.hold)

    def _fits(self, dimension: Wanted, now: int) -> tuple[bool, Fraction | None]:
        if dimension.kind == "rate":
            bucket = self.bucket(dimension)
            bucket.leak(now)
            short = bucket.short(dimension.amount)
            return short <= 0, short * bucket.unit
        if dimension.kind == "lease":
            return self.lease(dimension).held(now) < dimension.limit, None
        purse = self.purse(dimension)
        settled = purse.settled(now)
        if settled + dimension.amount > dimension.limit:
            return False, Fraction(span(purse.kind, now)[1] - now)
        return settled + purse.open(now) + dimension.amount <= dimension.limit, None

    def _charge(self, call: str, dimension: Wanted, now: int) -> None:
        if dimension.kind == "rate":
            self.bucket(dimension).level += dimension.amount
        elif dimension.kind == "lease":
            self.lease(dimension).deadlines[call] = now + self.hold
        else:
            purse = self.purse(dimension)
            purse.reserved[call] = (span(purse.kind, now)[0], dimension.amount, now + self.hold)

    def _standing(self, dimension: Wanted, now: int) -> tuple[int, Fraction | None]:
        if dimension.kind == "rate":
            bucket = self.bucket(dimension)
            return max(0, (bucket.limit - bucket.level).__floor__()), bucket.level * bucket.unit
        if dimension.kind == "lease":
            return max(0, dimension.limit - self.lease(dimension).held(now)), None
        purse = self.purse(dimension)
        left = dimension.limit - purse.settled(now) - purse.open(now)
        return max(0, left), Fraction(span(purse.kind, now)[1] - now)
