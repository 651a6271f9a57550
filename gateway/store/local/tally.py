"""Entries of the ledger, added up."""

from __future__ import annotations

from collections.abc import Iterable
from operator import add

from gateway.core.types import Entry, Sum
from gateway.store.periods import day

COUNTED = ("calls", "input", "cached", "output", "cost")
"""What a row of a tally counts, in this order."""


class Tally:
    """Entries added up by day, key, tenant and route; prompt and completion tokens also by target."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.rows: dict[tuple[str, str, str, str], list[int]] = {}
        self.targets: dict[str, list[int]] = {}
        rows: dict[tuple[float, str, str, str, str], list[int]] = {}
        for entry in entries:  # each call comes by here
            of = entry.time // 86400, entry.key_id, entry.tenant, entry.route, entry.target
            row = rows.get(of)
            if row is None:
                row = rows[of] = [0] * len(COUNTED)
            row[0] += 1
            row[1] += entry.input
            row[2] += entry.cached
            row[3] += entry.output
            row[4] += entry.cost_micros
        for (number, key_id, tenant, route, target), row in rows.items():
            sums = self.rows.setdefault((day(number * 86400), key_id, tenant, route), [0] * len(COUNTED))
            sums[:] = map(add, sums, row)
            if target:
                tokens = self.targets.setdefault(target, [0, 0])
                tokens[:] = tokens[0] + row[1], tokens[1] + row[3]

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
