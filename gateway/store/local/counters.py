"""The counters of one process: what the scripts do in Redis, for a gateway that runs alone or is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from gateway.core.types import Ask, Dimension, Standing, Verdict
from gateway.store import gcra, periods

MAX_BUCKETS = 100_000
"""Rate buckets kept before those that are whole again are dropped."""
MICRO = gcra.MICRO


class Spending:
    """A budget: what was settled in its period, and what calls under way have reserved."""

    __slots__ = ("number", "open", "reserved", "settled")

    def __init__(self, number: int, settled: int = 0) -> None:
        self.number, self.settled = number, settled
        self.open: dict[str, int] = {}
        self.reserved = 0
        """All that is open."""


_Look: TypeAlias = tuple[int, int, int, int, int, Any]
"""What a dimension says to an ask: microseconds until it fits (0: now); units left before it and after it, and
microseconds until all are back before it and after it; and what is kept if all is granted: a rate's arrival time, a
budget's spending."""


class Counters:
    """Nothing here waits, so nothing can interleave. `now` gives seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._granted: set[str] = set()
        self._tats: dict[str, int] = {}
        self.leases: dict[str, set[str]] = {}
        """Calls that hold slots, by the key of the lease; no empty sets."""
        self._budgets: dict[str, Spending] = {}
        self._looks: dict[str, Callable[[Dimension, int, int], _Look]] = {
            "rate": self._rate,
            "lease": self._lease,
            "budget": self._budget,
        }

    def restore(self, budgets: Iterable[tuple[str, int, int]]) -> None:
        """Budgets as a ledger knows them: key, period number, units settled."""
        for key, number, units in budgets:
            self._budgets[key] = Spending(number, units)

    def arrives(self, key: str, tat: int) -> None:
        """A rate as another store knows it."""
        self._tats[key] = tat

    def spent(self, key: str, spending: Spending) -> None:
        """A budget as another store knows it."""
        self._budgets[key] = spending

    def look(self, ask: Ask) -> Verdict:
        """What `charge` would say, charging nothing; the standings are those before the call."""
        now = int(self._now() * MICRO)
        found, longest = self._found(ask, now)
        return _before(ask, found, longest, now)

    def _found(self, ask: Ask, now: int) -> tuple[list[_Look], int]:
        """What each dimension says, and the longest time until one fits."""
        found, longest = list[_Look](), 0
        for dimension, amount in zip(ask.plan.dimensions, ask.amounts, strict=True):
            look = self._looks[dimension.kind](dimension, amount, now)
            longest = max(longest, look[0])
            found.append(look)
        return found, longest

    def charge(self, ask: Ask) -> Verdict:
        """Check all dimensions, then charge all or none."""
        dimensions, now = ask.plan.dimensions, int(self._now() * MICRO)
        found, longest = self._found(ask, now)
        if longest > 0:
            return _before(ask, found, longest, now)
        standings = []
        for dimension, amount, (_, _, left, _, reset, becomes) in zip(dimensions, ask.amounts, found, strict=True):
            standings.append(Standing(left, reset / MICRO))
            if dimension.kind == "rate":
                self._tats[dimension.key] = becomes
            elif dimension.kind == "lease":
                self.leases.setdefault(dimension.key, set()).add(ask.call_id)
            else:
                self._budgets[dimension.key] = becomes
                becomes.open[ask.call_id] = amount
                becomes.reserved += amount
        if found:
            self._granted.add(ask.call_id)
        if len(self._tats) > MAX_BUCKETS:
            self._tats = {key: tat for key, tat in self._tats.items() if tat > now}
        return Verdict(standings, at=now)

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        """End a granted ask; one that was not granted here, or is settled already, changes nothing."""
        if ask.call_id not in self._granted:
            self.release_lease(ask)  # it may have been held
            return
        self._granted.discard(ask.call_id)
        now = int(self._now() * MICRO)
        for dimension, amount, units in zip(ask.plan.dimensions, ask.amounts, used, strict=True):
            if dimension.kind == "rate":
                self._settle_rate(dimension, now, at, amount, units)
            elif dimension.kind == "budget":
                self._settle_budget(ask.call_id, dimension, at, units)
        self.release_lease(ask)

    def register_lease(self, ask: Ask) -> None:
        """Count the slots of a call that was admitted elsewhere."""
        for dimension in ask.plan.dimensions:
            if dimension.kind == "lease":
                self.leases.setdefault(dimension.key, set()).add(ask.call_id)

    def release_lease(self, ask: Ask) -> None:
        """Give the slots of a call back."""
        for dimension in ask.plan.dimensions:
            if dimension.kind == "lease" and (held := self.leases.get(dimension.key)):
                held.discard(ask.call_id)
                if not held:
                    del self.leases[dimension.key]

    def _rate(self, dimension: Dimension, amount: int, now: int) -> _Look:
        stored, limit, window = self._tats.get(dimension.key, 0), dimension.limit, int(dimension.window * MICRO)
        most = 1 if dimension.unit == "requests" else gcra.MOST_DEBT
        none, moved, over, left, left_after = gcra.look(stored, now, limit, window, amount, most)
        return max(0, over), left, left_after, none - now, moved - now, moved

    def _lease(self, dimension: Dimension, amount: int, now: int) -> _Look:
        left = dimension.limit - len(self.leases.get(dimension.key, ()))
        return 0 if left > 0 else MICRO, max(0, left), left - 1, 0, 0, None

    def _budget(self, dimension: Dimension, amount: int, now: int) -> _Look:
        assert dimension.period is not None
        number, ends = periods.period(dimension.period, now / MICRO)
        spending = self._budgets.get(dimension.key)
        if spending is None or spending.number != number:
            spending = Spending(number)
        left = dimension.limit - spending.settled - spending.reserved
        reset = int(ends * MICRO) - now
        wait = 0
        if amount > left:
            # What others have only reserved may come back at any time.
            wait = reset if spending.settled + amount > dimension.limit else MICRO
        return wait, max(0, left), max(0, left - amount), reset, reset, spending

    def _settle_rate(self, dimension: Dimension, now: int, at: int, amount: int, units: int) -> None:
        stored = self._tats.get(dimension.key, 0)
        window = int(dimension.window * MICRO)
        self._tats[dimension.key] = gcra.settle(stored, now, at, dimension.limit, window, amount, units)

    def _settle_budget(self, call_id: str, dimension: Dimension, at: int, units: int) -> None:
        assert dimension.period is not None
        number, _ = periods.period(dimension.period, at / MICRO)
        spending = self._budgets.get(dimension.key)
        if spending is not None:
            spending.reserved -= spending.open.pop(call_id, 0)
            if spending.number == number:
                spending.settled += units


def _before(ask: Ask, found: Sequence[_Look], longest: int, now: int) -> Verdict:
    """The verdict on an ask that changes nothing."""
    denied = next(i for i, look in enumerate(found) if look[0] == longest) if longest > 0 else None
    becomes = None if denied is None else found[denied][5]
    spent = isinstance(becomes, Spending) and becomes.settled >= ask.plan.dimensions[denied or 0].limit
    standings = [Standing(left, reset / MICRO) for _, left, _, reset, _, _ in found]
    return Verdict(standings, denied, longest / MICRO, spent, at=now)
