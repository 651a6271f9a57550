"""Calendar periods in UTC: every second is in exactly one day, week and month, and each begins where one ended."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.types import Period
from gateway.store.periods import day, first_day, period

KINDS: tuple[Period, ...] = get_args(Period)
SECONDS = st.integers(0, 7_000_000_000)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("kind", "inside", "first", "ends"),
    [
        ("day", "2026-11-22T00:00:00", "2026-11-22", "2026-11-23"),
        ("day", "2026-11-22T23:59:59.999999", "2026-11-22", "2026-11-23"),
        ("day", "2028-02-28T12:00:00", "2028-02-28", "2028-02-29"),
        ("day", "2026-12-31T12:00:00", "2026-12-31", "2027-01-01"),
        ("week", "2026-11-22T23:59:59", "2026-11-16", "2026-11-23"),  # a Sunday
        ("week", "2026-11-23T00:00:00", "2026-11-23", "2026-11-30"),  # a Monday
        ("week", "2027-01-01T00:00:00", "2026-12-28", "2027-01-04"),
        ("month", "2026-11-30T23:59:59", "2026-11-01", "2026-12-01"),
        ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "2027-02-15T00:00:00", "2027-02-01", "2027-03-01"),
        ("month", "2028-02-29T23:59:59", "2028-02-01", "2028-03-01"),
        ("month", "2100-02-28T23:59:59", "2100-02-01", "2100-03-01"),
        ("week", "1970-01-01T00:00:00", "1969-12-29", "1970-01-05"),
    ],
)
def test_a_period_begins_and_ends_where_the_calendar_says(kind: Period, inside: str, first: str, ends: str) -> None:
    _, until = period(kind, at(inside))
    assert until == at(ends)
    assert first_day(kind, at(inside)) == first


@given(SECONDS, st.sampled_from(KINDS))
def test_periods_follow_each_other_without_a_gap(seconds: int, kind: Period) -> None:
    number, ends = period(kind, seconds)
    assert seconds < ends
    assert period(kind, ends) == (number + 1, period(kind, ends)[1])
    assert period(kind, ends - 1) == (number, ends)
    begins = at(first_day(kind, seconds))
    assert begins <= seconds
    assert period(kind, begins) == (number, ends)
    assert period(kind, begins - 1)[0] == number - 1 if begins >= 1 else True


@given(SECONDS)
def test_days_weeks_and_months_are_those_of_the_calendar(seconds: int) -> None:
    today = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).date()
    assert day(seconds) == first_day("day", seconds) == today.isoformat()
    assert first_day("week", seconds) == (today - timedelta(days=today.isoweekday() - 1)).isoformat()
    assert first_day("month", seconds) == today.replace(day=1).isoformat()
    next_month = date(today.year + today.month // 12, today.month % 12 + 1, 1)
    assert period("month", seconds)[1] == at(next_month.isoformat())


@given(SECONDS, SECONDS, st.sampled_from(KINDS))
def test_two_moments_share_a_number_if_and_only_if_they_share_a_period(one: int, other: int, kind: Period) -> None:
    same = first_day(kind, one) == first_day(kind, other)
    assert (period(kind, one)[0] == period(kind, other)[0]) is same
