"""The metrics: names of one pattern, help for all, labels that no client can choose."""

from __future__ import annotations

import re

from gateway import __version__
from gateway.meter import Metrics, exposition

LABELS = {
    "endpoint", "route", "outcome", "error_type", "target", "direction", "scope", "dimension", "source", "version",
}  # fmt: skip


def test_names_and_helps() -> None:
    for family in Metrics().registry.collect():
        assert re.fullmatch(r"trunkline_[a-z_]+", family.name)
        assert family.documentation.endswith(".") and len(family.documentation) > 20
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_labels_are_a_closed_set_and_never_the_key() -> None:
    metrics = Metrics()
    for metric in vars(metrics).values():
        assert set(getattr(metric, "_labelnames", ())) <= LABELS


def test_two_registries_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.dropped.inc(3)
    assert b"trunkline_log_lines_dropped_total 3.0" in exposition(one)
    assert b"trunkline_log_lines_dropped_total 0.0" in exposition(other)


def test_the_version_is_told() -> None:
    assert f'trunkline_build_info{{version="{__version__}"}} 1.0'.encode() in exposition(Metrics())


def test_the_ledgers_and_the_limits_metrics_have_the_names_that_dashboards_use() -> None:
    metrics = Metrics()
    metrics.cost.labels("r").inc(7)
    metrics.usage_source.labels("r", "upstream").inc()
    metrics.denials.labels("tenant", "tpm").inc()
    metrics.throttled.inc()
    metrics.ledger_dropped.inc(3)
    metrics.settle_pending.set(2)
    metrics.gateways.set(4)
    metrics.drift_tokens.labels("t", "in").set(-5)
    metrics.drift_ratio.labels("t", "out").set(0.5)
    text = exposition(metrics).decode().splitlines()
    for line in (
        'trunkline_cost_micros_total{route="r"} 7.0',
        'trunkline_usage_source_total{route="r",source="upstream"} 1.0',
        'trunkline_limit_denials_total{dimension="tpm",scope="tenant"} 1.0',
        "trunkline_auth_throttled_total 1.0",
        "trunkline_ledger_entries_dropped_total 3.0",
        "trunkline_settle_pending 2.0",
        "trunkline_gateways 4.0",
        'trunkline_reconcile_drift_tokens{direction="in",target="t"} -5.0',
        'trunkline_reconcile_drift_ratio{direction="out",target="t"} 0.5',
    ):
        assert line in text
