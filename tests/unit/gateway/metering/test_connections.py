"""What is counted of connections becomes metrics: counters never fall, and what is gone is not shown."""

from __future__ import annotations

from gateway.metering import Metrics
from gateway.metering.connections import ConnectionMetrics


class Origin:
    def __init__(self, name: str) -> None:
        self.name = name
        self.open = self.made = self.reused = 0
        self.idle: list[object] = []
        self.seconds: list[float] = []


def shown(metrics: Metrics, name: str, target: str = "t") -> float | None:
    return metrics.registry.get_sample_value(f"trunkline_{name}", {"target": target})


def counts(metrics: Metrics) -> list[float | None]:
    return [shown(metrics, f"connections_{what}") for what in ("open", "idle", "made_total", "reused_total")]


def test_counts_of_one_target_are_those_of_all_its_origins() -> None:
    metrics = Metrics()
    connections, old, new = ConnectionMetrics(metrics), Origin("t"), Origin("t")
    old.open, old.made, old.reused, old.idle, old.seconds = 3, 4, 10, [1, 2], [0.001, 0.3]
    connections.show([old])
    assert [shown(metrics, f"connections_{what}") for what in ("open", "idle", "made_total", "reused_total")] == [
        3,
        2,
        4,
        10,
    ]
    assert shown(metrics, "connect_seconds_count") == 2 and shown(metrics, "connect_seconds_sum") == 0.301
    assert old.seconds == []

    new.open, new.made, new.seconds, old.open, old.idle, old.reused = 1, 1, [0.1], 1, [], 11
    connections.show([new, old])
    assert [shown(metrics, f"connections_{what}") for what in ("open", "idle", "made_total", "reused_total")] == [
        2,
        0,
        5,
        11,
    ]
    assert shown(metrics, "connect_seconds_count") == 3

    connections.show([new])
    assert [shown(metrics, f"connections_{what}") for what in ("open", "idle", "made_total", "reused_total")] == [
        1,
        0,
        5,
        11,
    ]


def test_a_target_that_is_gone_is_not_shown() -> None:
    metrics = Metrics()
    connections, origin = ConnectionMetrics(metrics), Origin("t")
    origin.open = origin.made = 1
    connections.show([origin])
    connections.show([])
    assert shown(metrics, "connections_open") is None and shown(metrics, "connections_idle") is None
    assert shown(metrics, "connections_made_total") == 1, "counters stay, so that sums never fall"
