"""What comparing shadow answers with those of the primaries comes to."""

from __future__ import annotations

from collections import Counter

from gateway.core.comparison import Comparison
from gateway.metering.metrics import Metrics


class ShadowMetrics:
    """Turns comparisons into metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tokens: dict[tuple[str, str], Counter[str]] = {}

    def compared(self, route: str, target: str, comparison: Comparison) -> None:
        """A copied call has ended."""
        metrics, primary, shadow = self._metrics, comparison.primary, comparison.shadow
        metrics.shadow.labels(route, target, "same" if comparison.same_status else "other").inc()
        if shadow.ttft is not None:
            metrics.shadow_ttft.labels(route, target).observe(shadow.ttft)
        if comparison.same_status and primary.tokens and shadow.tokens:
            sums = self._tokens.setdefault((route, target), Counter())
            sums["primary"] += primary.tokens
            sums["shadow"] += shadow.tokens
            metrics.shadow_tokens.labels(route, target).set(sums["shadow"] / sums["primary"])

    def dropped(self, route: str, target: str) -> None:
        """There was no room for a copy."""
        self._metrics.shadow.labels(route, target, "dropped").inc()
