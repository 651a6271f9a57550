"""What becomes of calls that wait, for whoever counts it."""

from __future__ import annotations


class QueueEvents:
    """Told by routes of their waiting calls; each method may be called at any time, and must not raise."""

    def queued(self, route: str, calls: int, size: int) -> None:
        """So many calls wait for a target with room, with bodies of `size` bytes."""

    def held(self, route: str, calls: int) -> None:
        """So many calls wait because no target is there."""

    def hold_ended(self, route: str, outcome: str, seconds: float) -> None:
        """A call is held no longer, after so many seconds; `outcome` is up, expired, refused or gone."""
