"""Gauges show routes and targets that are there, and no others; but calls under way until they have ended."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from prometheus_client import Gauge

from gateway.metering import Metrics, metrics

KNOWN = {"route": {"here"}, "target": {"t"}}


def shown(made: Metrics) -> set[tuple[str, ...]]:
    """The label values of all gauges that a scrape shows."""
    return {
        (sample.name.removeprefix("trunkline_"), *sample.labels.values())
        for family in made.registry.collect()
        if family.type == "gauge"
        for sample in family.samples
        if sample.labels and not math.isnan(sample.value)
    }


def labelled(made: Metrics) -> list[Gauge]:
    names = ("connections_open", "connections_idle")
    return [
        gauge
        for gauge in vars(made).values()
        if isinstance(gauge, Gauge)
        and {"route", "target"} & set(gauge._labelnames)
        and gauge not in [getattr(made, name) for name in names]
    ]


def test_every_gauge_forgets_what_is_gone() -> None:
    made = Metrics()
    gauges = labelled(made)
    assert {made.queue_calls, made.queue_bytes, made.held_calls, made.drift_ratio, made.drift_tokens} <= set(gauges)
    for gauge in gauges:
        for names in ({"route": "here", "target": "t"}, {"route": "gone", "target": "lost"}):
            gauge.labels(*(names.get(label, "x") for label in gauge._labelnames)).set(0)
    made.keep(KNOWN)
    left = shown(made)
    assert not [each for each in left if {"gone", "lost"} & set(each)]
    assert len([each for each in left if {"here", "t"} & set(each)]) == len(gauges)


def test_calls_of_a_route_that_is_gone_are_shown_until_they_have_ended() -> None:
    made = Metrics()
    made.held_calls.labels("gone").set(2)
    made.keep(KNOWN)
    assert ("held_calls", "gone") in shown(made)
    made.held_calls.labels("gone").set(0)
    made.keep(KNOWN)
    assert ("held_calls", "gone") not in shown(made)


def test_with_several_workers_it_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Metrics()
    monkeypatch.setattr(metrics, "_multiprocess_folder", lambda: tmp_path)
    made.queue_calls.labels("gone").set(0)
    for _ in range(2):
        made.keep(KNOWN)
    assert math.isnan(made.queue_calls.labels("gone")._value.get())


def test_what_a_target_that_is_gone_was_doing_is_not_shown() -> None:
    """Nobody sets it any more, so that it would stay for ever."""
    made = Metrics()
    made.target_running.labels("lost").set(3)
    made.route_drift.labels("gone", "context").set(1)
    made.keep(KNOWN)
    assert not [each for each in shown(made) if {"lost", "gone"} & set(each)]
