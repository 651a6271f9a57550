"""Entries of the ledger, added up."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from gateway.core.types import Entry, Sum
from gateway.store.periods import day

COUNTED = ("calls", "input", "cached", "output", "cost")
"""What a row of a tally counts, in this order."""


class Tally:
    """Adds entries up by day, key, tenant and route."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.rows: dict[tuple[str, str, str, str], list[int]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        row = self.rows.setdefault((_day(entry.time // 86400), entry.key_id, entry.tenant, entry.route), [0] * 5)
        row[0] += 1
        row[1] += entry.input
        row[2] += entry.cached
        row[3] += entry.output
        row[4] += entry.cost_micros

    def sums(self) -> list[Sum]:
        """What was added up, sorted by day, key, tenant and route."""
        return [
            Sum(
                day=of,
                key_id=key_id,
                tenant=tenant,
                route=route,
                calls=row[0],
                input=row[1],
                cached=row[2],
                output=row[3],
                cost_micros=row[4],
            )
            for (of, key_id, tenant, route), row in sorted(self.rows.items())
        ]


@lru_cache(maxsize=64)
def _day(number: float) -> str:
    return day(number * 86400)
