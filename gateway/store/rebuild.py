"""The budgets that follow from the ledger's sums, for stores that have lost their counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import get_args

from gateway.core.types import Period, Sum
from gateway.store import periods


def budget_key(scope: str, id: str, period: Period, unit: str) -> str:
    """Where a store keeps what was spent in a period."""
    return f"budget:{scope}:{id}:{period}:{unit}"


def budgets_of(sums: Iterable[Sum], now: float) -> Iterator[tuple[str, int, int]]:
    """Key, period number and units of every budget that holds something at `now` (seconds since the epoch).

    Sums are by UTC day, and every period begins with one: nothing is lost by adding them up.
    """
    spent: Counter[tuple[str, Period]] = Counter()
    firsts: dict[Period, str] = {kind: periods.first_day(kind, now) for kind in get_args(Period)}
    for found in sums:
        ids = (
            ("key", found.key_id),
            ("tenant", found.tenant),
            ("model", found.route),
            ("key_model", f"{found.key_id}:{found.route}"),
        )
        for kind, first in firsts.items():
            if found.day < first:
                continue
            for scope, id in ids:
                spent[budget_key(scope, id, kind, "tokens"), kind] += found.input + found.output
                spent[budget_key(scope, id, kind, "cost"), kind] += found.cost_micros
    for (key, kind), units in spent.items():
        if units:
            yield key, periods.period(kind, now)[0], units
