"""Calendar periods in UTC, as period.lua computes them too: budgets are counted in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gateway.core.types import Period

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_lately: dict[Period, tuple[float, float, int]] = {}
"""Begin, end and number of the period of each kind that was asked for last: it will be asked for again."""


def period(kind: Period, seconds: float) -> tuple[int, float]:
    """The number of the period that holds `seconds` since the epoch, and when the next one begins."""
    begins, ends, number = _lately.get(kind, (0.0, 0.0, 0))
    if not begins <= seconds < ends:
        begins, ends, number = _lately[kind] = _period(kind, seconds)
    return number, ends


def _period(kind: Period, seconds: float) -> tuple[float, float, int]:
    moment = EPOCH + timedelta(seconds=seconds)
    day = (moment - EPOCH).days
    if kind == "day":
        return day * 86400.0, (day + 1) * 86400.0, day
    if kind == "week":  # the epoch was a Thursday
        week = (day + 3) // 7
        return (week * 7 - 3) * 86400.0, (week * 7 + 4) * 86400.0, week
    first = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    after = datetime(moment.year + (moment.month == 12), moment.month % 12 + 1, 1, tzinfo=UTC)
    number = moment.year * 12 + moment.month - 1
    return (first - EPOCH).total_seconds(), (after - EPOCH).total_seconds(), number


def first_day(kind: Period, seconds: float) -> str:
    """The day on which the period that holds `seconds` began, such as `2026-11-01`."""
    moment = EPOCH + timedelta(seconds=seconds)
    if kind == "week":
        moment -= timedelta(days=moment.weekday())
    if kind == "month":
        moment = moment.replace(day=1)
    return day(moment.timestamp())


def day(seconds: float) -> str:
    """The UTC day that holds `seconds` since the epoch, such as `2026-11-22`."""
    return (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%d")
