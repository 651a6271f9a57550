"""Calendar periods in UTC, as period.lua computes them too: budgets are counted in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gateway.core.types import Period

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def period(kind: Period, seconds: float) -> tuple[int, float]:
    """The number of the period that holds `seconds` since the epoch, and when the next one begins."""
    moment = EPOCH + timedelta(seconds=seconds)
    day = (moment - EPOCH).days
    if kind == "day":
        return day, (day + 1) * 86400.0
    if kind == "week":  # the epoch was a Thursday
        week = (day + 3) // 7
        return week, (week * 7 + 4) * 86400.0
    month = moment.year * 12 + moment.month - 1
    after = datetime(moment.year + (moment.month == 12), moment.month % 12 + 1, 1, tzinfo=UTC)
    return month, (after - EPOCH).total_seconds()


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
