"""How many retries there may be: few, so that an outage is not answered with twice the calls."""

from __future__ import annotations

from typing import Final

RETRY_SHARE: Final = 0.2
RETRY_FLOOR: Final = 3
"""Retries in flight may be a fifth of all calls in flight, but three are always allowed."""


class RetryBudget:
    """A route's calls and retries in flight, which its calls count in and out."""

    __slots__ = ("in_flight", "retrying")

    def __init__(self) -> None:
        self.in_flight = 0
        self.retrying = 0

    def allows(self) -> bool:
        """One more retry may begin."""
        return self.retrying < max(RETRY_FLOOR, RETRY_SHARE * self.in_flight)
