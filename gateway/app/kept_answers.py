"""The response cache of a worker: where answers are kept, and what becomes of them, in metrics."""

from __future__ import annotations

from gateway.answers import AnswerEvents, Answers
from gateway.answers.kept import secret_of
from gateway.config import Settings
from gateway.core.clock import Clock
from gateway.metering import Metrics
from gateway.store import open_answers


class KeptAnswers(AnswerEvents):
    """Tells metrics."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Clock) -> None:
        """Raises `ValueError` for a URL that is none."""
        self._metrics = metrics
        assert settings.cache_url is not None
        self._values = open_answers(settings.cache_url, settings.redis_timeout)
        self.answers = Answers(self._values, secret_of(settings.pepper_versions()), clock, self)
        self.open, self.close = self._values.open, self._values.close

    def looked(self, route: str, found: str) -> None:
        """The answer to a call was looked for."""
        self._metrics.cache.labels(route, found).inc()

    def saved(self, route: str, input: int, output: int) -> None:
        """So many tokens need not be made again."""
        self._metrics.cache_saved.labels(route, "in").inc(input)
        self._metrics.cache_saved.labels(route, "out").inc(output)

    def kept(self, route: str, outcome: str) -> None:
        """A good answer was kept, or was not."""
        self._metrics.cache_kept.labels(route, outcome).inc()
