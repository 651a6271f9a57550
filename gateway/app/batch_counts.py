"""What metrics tell of batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from gateway.app.batch_turns import Turns
from gateway.core.batches import ENDED, Batch
from gateway.metering import Metrics

ACTIVE: Final = ("validating", "in_progress", "finalizing", "cancelling")


class BatchCounts:
    """Counts what this worker does for batches; all series are there from the beginning."""

    def __init__(self, metrics: Metrics, turns: Turns) -> None:
        self._metrics, self._turns = metrics, turns
        for status in ENDED:
            metrics.batches_ended.labels(status)
        for outcome in ("completed", "failed"):
            metrics.batch_lines.labels(outcome)
        self.active(())
        metrics.pending.before(self._show)

    def active(self, batches: Iterable[Batch]) -> None:
        """These have not ended, in all gateways."""
        counts = Counter(batch.status for batch in batches)
        for status in ACTIVE:
            self._metrics.batches.labels(status).set(counts[status])

    def ended(self, status: str) -> None:
        """One has ended, by what this worker did."""
        self._metrics.batches_ended.labels(status).inc()

    def recorded(self, completed: int, failed: int) -> None:
        """So many lines have their answers."""
        self._metrics.batch_lines.labels("completed").inc(completed)
        self._metrics.batch_lines.labels("failed").inc(failed)

    def _show(self) -> None:
        self._metrics.batch_lines_in_flight.set(self._turns.running)
