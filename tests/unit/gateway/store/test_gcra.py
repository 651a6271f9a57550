"""The cell rate algorithm: a full burst at once, then exactly the rate, honest waits, and no unit given back twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.gcra import MICRO, MOST_DEBT, look, remaining, settle, step

LIMITS = st.integers(1, 5000)
WINDOWS = st.sampled_from([MICRO, 60 * MICRO, 3600 * MICRO])
NOW = 1_800_000_000 * MICRO
MINUTE = 60 * MICRO


@given(LIMITS, WINDOWS)
def test_a_whole_bucket_grants_exactly_its_limit_at_once(limit: int, window: int) -> None:
    tat, granted = 0, 0
    while (moved := step(tat, NOW, limit, window, 1)).over <= 0 and granted <= limit:
        tat, granted = moved.tat, granted + 1
    assert granted == limit


@given(LIMITS, WINDOWS, st.lists(st.integers(0, 90 * MICRO), min_size=1, max_size=60), st.integers(1, 3))
def test_no_sliding_window_admits_more_than_limit_and_burst(
    limit: int, window: int, pauses: list[int], amount: int
) -> None:
    amount = min(amount, limit)
    now, tat, grants = NOW, 0, []
    for pause in pauses:
        now += pause
        for _ in range(3):
            moved = step(tat, now, limit, window, amount)
            if moved.over <= 0:
                tat = moved.tat
                grants.append(now)
    for start in grants:
        inside = sum(amount for at in grants if start <= at <= start + window)
        assert inside <= limit + limit  # the burst of a whole bucket, and what drips in meanwhile


@given(LIMITS, WINDOWS, st.integers(0, 7200 * MICRO), st.integers(1, 5000))
def test_a_denied_ask_fits_exactly_after_its_wait(limit: int, window: int, ahead: int, amount: int) -> None:
    amount = min(amount, limit)
    stored = NOW + min(ahead, limit * -(-window // limit))  # at most an empty bucket
    moved = step(stored, NOW, limit, window, amount)
    if moved.over > 0:
        assert step(stored, NOW + moved.over, limit, window, amount).over <= 0
        assert step(stored, NOW + moved.over - 1, limit, window, amount).over > 0


@given(LIMITS, WINDOWS, st.integers(0, 7200 * MICRO))
def test_what_is_left_can_be_had(limit: int, window: int, ahead: int) -> None:
    left = remaining(NOW + ahead, NOW, limit, window)
    assert 0 <= left <= limit
    if left:
        assert step(NOW + ahead, NOW, limit, window, left).over <= 0
        assert left == limit or step(NOW + ahead, NOW, limit, window, left + 1).over > 0


@given(LIMITS, WINDOWS, st.integers(0, 10**12))
def test_a_stored_time_from_the_future_is_clamped(limit: int, window: int, ahead: int) -> None:
    assert step(NOW + ahead, NOW, limit, window, 1).over <= -(-window // limit)


@given(LIMITS, WINDOWS, st.integers(0, 10**15))
def test_a_debt_is_kept_but_for_what_is_beyond_ten_windows(limit: int, window: int, ahead: int) -> None:
    whole = limit * -(-window // limit)
    over = step(NOW + ahead, NOW, limit, window, 0, MOST_DEBT).over
    assert over == min(ahead, whole * MOST_DEBT) - whole


@given(LIMITS, WINDOWS, st.data())
def test_reserving_and_giving_all_back_at_once_is_nothing(limit: int, window: int, data: st.DataObject) -> None:
    before = NOW + data.draw(st.integers(0, limit * (window // limit)))
    amount = data.draw(st.integers(0, limit))
    tat = step(before, NOW, limit, window, amount).tat
    assert settle(tat, NOW, NOW, limit, window, amount, 0) == before


@given(LIMITS, WINDOWS, st.data())
def test_settling_is_as_if_the_real_amount_had_been_reserved(limit: int, window: int, data: st.DataObject) -> None:
    before = NOW + data.draw(st.integers(0, limit * (window // limit)))
    reserved, used = data.draw(st.integers(0, limit)), data.draw(st.integers(0, limit))
    tat = step(before, NOW, limit, window, reserved).tat
    assert settle(tat, NOW, NOW, limit, window, reserved, used) == step(before, NOW, limit, window, used).tat


@given(
    LIMITS, WINDOWS, st.integers(0, 10**13), st.integers(0, 5000), st.integers(0, 10**7), st.integers(-MINUTE, 10**10)
)
def test_a_settlement_never_makes_a_bucket_more_than_whole_nor_its_debt_endless(
    limit: int, window: int, ahead: int, reserved: int, used: int, elapsed: int
) -> None:
    whole = limit * -(-window // limit)
    tat = settle(NOW + ahead, NOW, NOW - elapsed, limit, window, reserved, used)
    assert NOW <= tat <= NOW + max(ahead, MOST_DEBT * whole)
    if used <= reserved:
        assert tat <= NOW + ahead


def test_the_naive_refund_would_admit_twice_the_rate() -> None:
    """Reserve all; when it has leaked, another call takes it again; then the first one turns out to have used nothing.

    To give its 1,000 units back now would admit a third 1,000 within one window.
    """
    limit, reserved = 1000, 1000
    first = step(0, NOW, limit, MINUTE, reserved)
    later = NOW + MINUTE
    second = step(first.tat, later, limit, MINUTE, 1000)
    assert second.over <= 0
    naive = second.tat - reserved * (MINUTE // limit)
    assert step(naive, later, limit, MINUTE, 1000).over <= 0, "what the naive refund does"

    settled = settle(second.tat, later, NOW, limit, MINUTE, reserved, 0)
    assert settled == second.tat
    assert step(settled, later, limit, MINUTE, 1).over > 0


@given(st.lists(st.tuples(st.integers(0, 40 * MICRO), st.integers(1, 100), st.integers(0, 100), st.integers(0, 90 * MICRO)), min_size=1, max_size=40))  # fmt: skip  # noqa: E501
def test_whatever_is_refunded_the_rate_of_what_was_used_stays(
    calls: list[tuple[int, int, int, int]],
) -> None:
    """Calls that reserve more than they use, and end at any time later: no window sees more than limit and burst."""
    limit = 100
    events = []
    now = NOW
    for pause, reserved, used, lasts in calls:
        now += pause
        events.append((now, 0, reserved, min(used, reserved), now + lasts))
    tat, used_at, waiting = 0, list[tuple[int, int]](), list[tuple[int, int, int, int]]()
    for at, _, reserved, used, ends in events:
        for end, granted, was, really in sorted(each for each in waiting if each[0] <= at):
            tat = settle(tat, end, granted, limit, MINUTE, was, really)
            waiting.remove((end, granted, was, really))
        moved = step(tat, at, limit, MINUTE, reserved)
        if moved.over <= 0:
            tat = moved.tat
            used_at.append((at, used))
            waiting.append((ends, at, reserved, used))
    for start, _ in used_at:
        assert sum(units for at, units in used_at if start <= at <= start + MINUTE) <= 2 * limit


@pytest.mark.parametrize("limit", [1, 7, 59, 61, 9999])
def test_rounding_never_gives_more_than_the_limit(limit: int) -> None:
    """A minute of asking as often as one may: the limit, and what dripped into it; never one more."""
    tat, granted, now = 0, 0, NOW
    while now <= NOW + MINUTE:
        moved = step(tat, now, limit, MINUTE, 1)
        if moved.over <= 0:
            tat, granted = moved.tat, granted + 1
        else:
            now += moved.over
    assert granted <= 2 * limit


@given(
    LIMITS, WINDOWS, st.integers(-600 * MICRO, 60_000 * MICRO), st.integers(0, 10_000), st.sampled_from([1, MOST_DEBT])
)
def test_a_look_is_two_steps_and_what_remains_after_each(
    limit: int, window: int, ahead: int, amount: int, most: int
) -> None:
    stored = NOW + ahead
    none, moved = (step(stored, NOW, limit, window, units, most) for units in (0, amount))
    left, left_after = (remaining(each.tat, NOW, limit, window) for each in (none, moved))
    assert look(stored, NOW, limit, window, amount, most) == (none.tat, moved.tat, moved.over, left, left_after)
