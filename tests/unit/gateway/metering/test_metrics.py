"""The metrics: names of one pattern, help for all, labels that no client can choose."""

from __future__ import annotations

import re

import pytest

from gateway import __version__
from gateway.metering import Metrics, exposition
from gateway.metering.pending import observe_all

LABELS = {
    "endpoint", "route", "outcome", "error_type", "target", "direction", "scope", "dimension", "source", "version",
    "policy", "reason", "field", "hash", "phase", "cause", "about", "status",
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


def test_routings_metrics_have_the_names_that_dashboards_use() -> None:
    metrics = Metrics()
    metrics.decisions.labels("r", "home-cost", "warm").inc(2)
    metrics.fallbacks.labels("r", "down").inc()
    metrics.queue_wait.labels("r").observe(0.3)
    metrics.queue_calls.labels("r").set(3)
    metrics.queue_bytes.labels("r").set(500)
    metrics.prompt_tokens.labels("r", "t").inc(10)
    metrics.cached_tokens.labels("r", "t").inc(4)
    metrics.target_prefill.labels("t").set(900)
    metrics.target_running.labels("t").set(5)
    metrics.target_waiting.labels("t").set(2)
    metrics.load_age.set(0.1)
    metrics.engine_running.labels("t").set(1)
    metrics.engine_waiting.labels("t").set(2)
    metrics.engine_cache.labels("t").set(0.5)
    metrics.route_drift.labels("r", "context").set(1)
    metrics.shadow.labels("r", "s", "same").inc()
    metrics.reloads.labels("applied").inc()
    metrics.config.labels("h").set(1)
    metrics.config_bad.set(0)
    text = exposition(metrics).decode().splitlines()
    for line in (
        'trunkline_route_decisions_total{policy="home-cost",reason="warm",route="r"} 2.0',
        'trunkline_fallbacks_total{reason="down",route="r"} 1.0',
        'trunkline_queue_wait_seconds_sum{route="r"} 0.3',
        'trunkline_queue_calls{route="r"} 3.0',
        'trunkline_queue_bytes{route="r"} 500.0',
        'trunkline_prompt_tokens_total{route="r",target="t"} 10.0',
        'trunkline_cached_tokens_total{route="r",target="t"} 4.0',
        'trunkline_target_prefill_tokens{target="t"} 900.0',
        'trunkline_target_running{target="t"} 5.0',
        'trunkline_target_waiting{target="t"} 2.0',
        "trunkline_load_view_age_seconds 0.1",
        'trunkline_engine_running{target="t"} 1.0',
        'trunkline_engine_waiting{target="t"} 2.0',
        'trunkline_engine_kv_usage_ratio{target="t"} 0.5',
        'trunkline_route_drift{field="context",route="r"} 1.0',
        'trunkline_shadow_calls_total{outcome="same",route="r",target="s"} 1.0',
        'trunkline_config_reloads_total{outcome="applied"} 1.0',
        'trunkline_config_info{hash="h"} 1.0',
        "trunkline_config_refused 0.0",
    ):
        assert line in text


def gaps(metrics: Metrics) -> list[bytes]:
    lines = exposition(metrics).splitlines()
    return [line for line in lines if line.startswith(b"trunkline_inter_token") and b"_created" not in line]


@pytest.mark.parametrize("values", [[], [0.001], [0.005, 0.0051, 7.0, 99.0, 0.03, 0.03], [30.0, 31.0, -1.0]])
def test_values_observed_together_are_as_if_observed_one_by_one(values: list[float]) -> None:
    """It uses private parts of prometheus_client: this fails when they change."""
    one, together = Metrics(), Metrics()
    for value in values:
        one.itl.labels("r", "t").observe(value)
    one.itl.labels("r", "t")
    observe_all(together.itl.labels("r", "t"), values)
    assert gaps(together) == gaps(one)
