"""Two answers to one call, compared."""

from __future__ import annotations

from msgspec import Struct


class Seen(Struct, frozen=True):
    """What one target made of a call."""

    status: int
    tokens: int | None
    """Of the completion; None: nobody counted them."""
    ttft: float | None
    """Seconds until the first token; None: there was none."""
    seconds: float
    """Until the end of the answer."""


class Comparison(Struct, frozen=True):
    """Two answers to one call, and how the shadow's differs."""

    primary: Seen
    shadow: Seen

    @property
    def same_status(self) -> bool:
        """Both succeeded, or both failed alike."""
        return self.primary.status == self.shadow.status

    @property
    def tokens(self) -> int | None:
        """Completion tokens that the shadow wrote more; None where they cannot be compared."""
        if not self._answered or self.primary.tokens is None or self.shadow.tokens is None:
            return None
        return self.shadow.tokens - self.primary.tokens

    @property
    def ttft(self) -> float | None:
        """Seconds by which the shadow's first token came later; None where they cannot be compared."""
        if not self._answered or self.primary.ttft is None or self.shadow.ttft is None:
            return None
        return self.shadow.ttft - self.primary.ttft

    @property
    def _answered(self) -> bool:
        return self.primary.status == self.shadow.status == 200
