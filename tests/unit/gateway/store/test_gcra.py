"""The cell rate algorithm: a full burst at once, then exactly the rate, and honest waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.store.gcra import MICRO, remaining, step

LIMITS = st.integers(1, 5000)
WINDOWS = st.sampled_from([MICRO, 60 * MICRO, 3600 * MICRO])
NOW = 1_800_000_000 * MICRO


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
