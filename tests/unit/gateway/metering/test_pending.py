"""What calls add to metrics is gathered, and whoever looks at these finds all of it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

from gateway.metering import Metrics, exposition
from gateway.metering.pending import Pending


def test_a_scrape_has_all_that_was_added() -> None:
    metrics = Metrics()
    values = metrics.pending.values(metrics.redis)
    for seconds in (0.0001, 0.003, 100.0):
        values.append(seconds)
    assert b"trunkline_redis_seconds_count 3.0" in exposition(metrics)
    values.append(0.003)
    text = exposition(metrics).decode()
    assert "trunkline_redis_seconds_count 4.0" in text
    assert 'trunkline_redis_seconds_bucket{le="0.004"} 3.0' in text
    assert 'trunkline_redis_seconds_bucket{le="0.0005"} 1.0' in text


def test_what_is_told_late_comes_before_what_is_collected() -> None:
    registry = CollectorRegistry()
    pending = Pending(registry)
    histogram = Histogram("seconds", "of something", registry=registry)
    pending.before(lambda: pending.values(histogram).append(0.5))
    assert registry.get_sample_value("seconds_sum") == 0.5
    assert registry.get_sample_value("seconds_sum") == 1.0


def test_where_values_go_stays_the_same_list() -> None:
    metrics = Metrics()
    values = metrics.pending.values(metrics.redis)
    values.append(1.0)
    metrics.pending.flush()
    assert metrics.pending.values(metrics.redis) is values and not values
