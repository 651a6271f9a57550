"""The generic cell rate algorithm in integer microseconds, as admit.lua computes it too.

A bucket is one number, the theoretical arrival time (TAT): when the bucket will be whole again. A unit costs its share
of the window, rounded up to a microsecond so that the rate is never above the limit; a whole bucket holds exactly
`limit` of them. Source: ITU-T I.371.
"""

from __future__ import annotations

from typing import NamedTuple

MICRO = 1_000_000


class Step(NamedTuple):
    """What an ask would do to a bucket."""

    tat: int
    """The arrival time to store if all is granted, in microseconds."""
    over: int
    """Microseconds until the same ask fits; 0 or less: it fits now."""


def step(stored: int, now: int, limit: int, window: int, amount: int) -> Step:
    """Move a bucket of `limit` units a `window` (microseconds) by `amount` units.

    A stored time beyond a whole bucket is clamped: after a clock went back, a key must not be locked for hours.
    """
    cost = -(-window // limit)
    whole = cost * limit
    tat = min(max(stored, now), now + whole) + cost * amount
    return Step(tat, tat - now - whole)


def remaining(tat: int, now: int, limit: int, window: int) -> int:
    """Whole units left in the bucket."""
    cost = -(-window // limit)
    return max(0, (cost * limit - max(tat - now, 0)) // cost)
