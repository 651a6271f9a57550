"""What is to be added to metrics, gathered: each addition by itself would be a tenth of what a call costs.

It is brought to them before every scrape, so that these are exact, and once a second, for a scrape of several workers
reads the others' files.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Histogram, Metric


class Pending:
    """A collector without metrics of its own: being asked before all others, it brings them up to date."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """To be made before the metrics of this registry."""
        self._values: dict[Histogram, list[float]] = {}
        self._adds: list[Callable[[], None]] = []
        registry.register(self)

    def values(self, histogram: Histogram) -> list[float]:
        """Where to put what is to be observed, always the same list."""
        return self._values.setdefault(histogram, [])

    def forget(self, histogram: Histogram) -> None:
        """Nothing more will be observed of it."""
        self._values.pop(histogram, None)

    def before(self, add: Callable[[], None]) -> None:
        """Have this called whenever metrics are brought up to date."""
        self._adds.append(add)

    def flush(self) -> None:
        """Bring metrics up to date."""
        for add in self._adds:
            add()
        for histogram, values in self._values.items():
            if values:
                observe_all(histogram, values)
                values.clear()

    def collect(self) -> Sequence[Metric]:
        """Nothing: what is asked after this is up to date."""
        self.flush()
        return ()


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """As `observe` of each value, for the price of a few.

    Uses private parts of prometheus_client: a test fails when they change.
    """
    bounds, buckets = histogram._upper_bounds, histogram._buckets
    for index, count in Counter(map(partial(bisect_left, bounds), values)).items():
        buckets[index].inc(count)
    histogram._sum.inc(sum(values))
