"""The generic cell rate algorithm in integer microseconds, as admit.lua and settle.lua compute it too.

A bucket is one number, the theoretical arrival time (TAT): when the bucket will be whole again. A unit costs its share
of the window, rounded up to a microsecond so that the rate is never above the limit; a whole bucket holds exactly
`limit` of them. Source: ITU-T I.371.
"""

from __future__ import annotations

from typing import NamedTuple

MICRO = 1_000_000
MOST_DEBT = 10
"""Windows by which a bucket of tokens may be overdrawn, when calls used more than they had reserved."""


class Step(NamedTuple):
    """What an ask would do to a bucket."""

    tat: int
    """The arrival time to store if all is granted, in microseconds."""
    over: int
    """Microseconds until the same ask fits; 0 or less: it fits now."""


def step(stored: int, now: int, limit: int, window: int, amount: int, most: int = 1) -> Step:
    """Move a bucket of `limit` units a `window` (microseconds) by `amount` units.

    A stored time beyond `most` whole buckets is clamped: after a clock went back, a key must not be locked for hours.
    """
    cost = -(-window // limit)
    whole = cost * limit
    tat = min(max(stored, now), now + whole * most) + cost * amount
    return Step(tat, tat - now - whole)


def look(stored: int, now: int, limit: int, window: int, amount: int, most: int) -> tuple[int, int, int, int, int]:
    """`step` by nothing and by `amount`: both arrival times, how much too early the ask is, and the units `remaining`
    before and after."""
    cost = -(-window // limit)
    whole = cost * limit
    none = min(max(stored, now), now + whole * most)
    moved = none + cost * amount
    left, left_after = (whole - none + now) // cost, (whole - moved + now) // cost
    return none, moved, moved - now - whole, max(0, left), max(0, left_after)


def settle(stored: int, now: int, at: int, limit: int, window: int, reserved: int, used: int) -> int:
    """The arrival time after a call that had `reserved` units at `at` turns out to have `used` others.

    More is a debt that the next calls wait for. Less is given back, but for what has leaked away since: that was used
    by time, and giving it back too would admit it twice.
    """
    cost = -(-window // limit)
    tat = max(stored, now)
    if used >= reserved:
        return min(tat + cost * (used - reserved), max(tat, now + MOST_DEBT * cost * limit))
    unleaked = max(0, reserved * cost - max(0, now - at))
    return max(now, tat - min((reserved - used) * cost, unleaked))


def remaining(tat: int, now: int, limit: int, window: int) -> int:
    """Whole units left in the bucket."""
    cost = -(-window // limit)
    return max(0, (cost * limit - max(tat - now, 0)) // cost)
