"""The metrics: names of one pattern, help for all, labels that no client can choose."""

from __future__ import annotations

import re

from gateway import __version__
from gateway.meter import Metrics, exposition

LABELS = {"endpoint", "route", "outcome", "error_type", "target", "direction", "dimension", "version"}


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
