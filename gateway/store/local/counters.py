"""The counters of one process: what the scripts do in Redis, for a gateway that runs alone or is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gateway.core.types import Ask, Dimension, Standing, Verdict
from gateway.store import gcra, periods

MAX_BUCKETS = 100_000
"""Rate buckets kept before those that are whole again are dropped."""
MICRO = gcra.MICRO


class Spending:
    """A budget: what was settled in its period, and what calls under way have reserved."""

    __slots__ = ("number", "open", "settled")

    def __init__(self, number: int, settled: int = 0) -> None:
        self.number, self.settled = number, settled
        self.open: dict[str, int] = {}


class _Look(NamedTuple):
    """What a dimension says to an ask."""

    wait: int
    """Microseconds until it fits; 0: now."""
    before: Standing
    after: Standing
    commit: Callable[[], None]


class Counters:
    """Nothing here waits, so nothing can interleave. `now` gives seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._granted: set[str] = set()
        self._tats: dict[str, int] = {}
        self.leases: dict[str, set[str]] = {}
        """Calls that hold slots, by the key of the lease; no empty sets."""
        self._budgets: dict[str, Spending] = {}

    def restore(self, budgets: Iterable[tuple[str, int, int]]) -> None:
        """Budgets as a ledger knows them: key, period number, units settled."""
        for key, number, units in budgets:
            self._budgets[key] = Spending(number, units)

    def charge(self, ask: Ask) -> Verdict:
        """Check all dimensions, then charge all or none."""
        now = int(self._now() * MICRO)
        looks = {"rate": self._rate, "lease": self._lease, "budget": self._budget}
        pairs = zip(ask.plan.dimensions, ask.amounts, strict=True)
        found = [looks[dimension.kind](ask.call_id, dimension, amount, now) for dimension, amount in pairs]
        longest = max((look.wait for look in found), default=0)
        if longest > 0:
            denied = next(i for i, look in enumerate(found) if look.wait == longest)
            return Verdict([look.before for look in found], denied, longest / MICRO, at=now)
        for look in found:
            look.commit()
        if found:
            self._granted.add(ask.call_id)
        if len(self._tats) > MAX_BUCKETS:
            self._tats = {key: tat for key, tat in self._tats.items() if tat > now}
        return Verdict([look.after for look in found], at=now)

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        """End a granted ask; one that was not granted here, or is settled already, changes nothing."""
        if ask.call_id not in self._granted:
            self.let_go(ask)  # it may have been held
            return
        self._granted.discard(ask.call_id)
        now = int(self._now() * MICRO)
        for dimension, amount, units in zip(ask.plan.dimensions, ask.amounts, used, strict=True):
            if dimension.kind == "rate":
                self._settle_rate(dimension, now, at, amount, units)
            elif dimension.kind == "budget":
                self._settle_budget(ask.call_id, dimension, at, units)
        self.let_go(ask)

    def hold(self, ask: Ask) -> None:
        """Count the slots of a call that was admitted elsewhere."""
        for dimension in ask.plan.dimensions:
            if dimension.kind == "lease":
                self.leases.setdefault(dimension.key, set()).add(ask.call_id)

    def let_go(self, ask: Ask) -> None:
        """Give the slots of a call back."""
        for dimension in ask.plan.dimensions:
            if dimension.kind == "lease" and (held := self.leases.get(dimension.key)):
                held.discard(ask.call_id)
                if not held:
                    del self.leases[dimension.key]

    def _rate(self, _: str, dimension: Dimension, amount: int, now: int) -> _Look:
        window = int(dimension.window * MICRO)
        stored = self._tats.get(dimension.key, 0)
        most = 1 if dimension.unit == "requests" else gcra.MOST_DEBT
        none, moved = (gcra.step(stored, now, dimension.limit, window, n, most) for n in (0, amount))

        def standing(tat: int) -> Standing:
            return Standing(gcra.remaining(tat, now, dimension.limit, window), (tat - now) / MICRO)

        def commit() -> None:
            self._tats[dimension.key] = moved.tat

        return _Look(max(0, moved.over), standing(none.tat), standing(moved.tat), commit)

    def _lease(self, call_id: str, dimension: Dimension, amount: int, now: int) -> _Look:
        left = dimension.limit - len(self.leases.get(dimension.key, ()))

        def commit() -> None:
            self.leases.setdefault(dimension.key, set()).add(call_id)

        return _Look(0 if left > 0 else MICRO, Standing(max(0, left), 0.0), Standing(left - 1, 0.0), commit)

    def _budget(self, call_id: str, dimension: Dimension, amount: int, now: int) -> _Look:
        assert dimension.period is not None
        number, ends = periods.period(dimension.period, now / MICRO)
        spending = self._budgets.get(dimension.key)
        if spending is None or spending.number != number:
            spending = Spending(number)
        left = dimension.limit - spending.settled - sum(spending.open.values())
        reset = int(ends * MICRO) - now
        wait = 0
        if amount > left:
            # What others have only reserved may come back at any time.
            wait = reset if spending.settled + amount > dimension.limit else MICRO

        def commit() -> None:
            self._budgets[dimension.key] = spending
            spending.open[call_id] = amount

        before, after = (Standing(max(0, n), reset / MICRO) for n in (left, left - amount))
        return _Look(wait, before, after, commit)

    def _settle_rate(self, dimension: Dimension, now: int, at: int, amount: int, units: int) -> None:
        stored = self._tats.get(dimension.key, 0)
        window = int(dimension.window * MICRO)
        self._tats[dimension.key] = gcra.settle(stored, now, at, dimension.limit, window, amount, units)

    def _settle_budget(self, call_id: str, dimension: Dimension, at: int, units: int) -> None:
        assert dimension.period is not None
        number, _ = periods.period(dimension.period, at / MICRO)
        spending = self._budgets.get(dimension.key)
        if spending is not None:
            spending.open.pop(call_id, None)
            if spending.number == number:
                spending.settled += units
