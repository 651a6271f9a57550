"""Days, weeks and months in UTC: in Python, in the scripts, and in Redis's present."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import resources

import pytest
from contract.model import span
from contract.subject import Subject
from harness.redis_server import RedisServer
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from gateway.core.types import Period
from gateway.store import periods

PERIODS: tuple[Period, ...] = ("day", "week", "month")
MICRO = 1_000_000
DAYS = st.integers(0, 60_000).map(lambda day: day * 86_400)
MOMENTS = st.builds(lambda day, second: day + second, DAYS, st.sampled_from([0, 1, 43_200, 86_399]))


@settings(max_examples=500)
@given(seconds=MOMENTS, period=st.sampled_from(PERIODS))
def test_periods_are_those_of_the_calendar(seconds: int, period: Period) -> None:
    first, ends = span(period, seconds * MICRO)
    number, after = periods.period(period, float(seconds))
    assert after == ends // MICRO
    assert periods.first_day(period, float(seconds)) == first.isoformat()
    assert periods.period(period, after - 0.001)[0] == number
    assert periods.period(period, after)[0] == number + 1


@pytest.mark.parametrize("period", PERIODS)
def test_the_script_knows_the_same_calendar(redis: RedisServer, period: Period) -> None:
    """Every day of 130 years at its first and last second, by the very text that the scripts are made of."""
    text = resources.files("gateway.store.redis").joinpath("period.lua").read_text()
    script = text + "local n, e = period(ARGV[1], tonumber(ARGV[2])) return string.format('%.0f %.0f', n, e)"
    step = timedelta(days=1) if period == "month" else timedelta(days=13)
    with Redis.from_url(redis.url) as client:
        load = client.register_script(script)
        with client.pipeline(transaction=False) as pipe:
            moments = []
            moment = datetime(1970, 1, 1, tzinfo=UTC)
            while moment.year < 2101:
                for seconds in (int(moment.timestamp()), int(moment.timestamp()) + 86_399):
                    moments.append(seconds)
                    load(args=[period, seconds], client=pipe)
                moment += step
            answers = pipe.execute()
    for seconds, answer in zip(moments, answers, strict=True):
        number, ends = periods.period(period, float(seconds))
        assert answer.decode() == f"{number} {int(ends)}", datetime.fromtimestamp(seconds, UTC)


@pytest.mark.parametrize("subject", ["redis"], indirect=True)
async def test_the_present_of_redis_is_the_present(subject: Subject) -> None:
    """In real time, without any test's clock: a budget ends when the calendar says."""
    await subject.key()
    for period in PERIODS:
        _, verdict = await subject.granted(subject.budget(10, 1, period))
        assert abs(verdict.at / MICRO - datetime.now(UTC).timestamp()) < 2
        ends = span(period, verdict.at)[1]
        assert verdict.standings[0].reset == pytest.approx((ends - verdict.at) / MICRO, abs=0.001)
