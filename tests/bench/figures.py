"""The figures of a run: their targets, whether they are met, and how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Kind:
    """One line of the table; a target is an upper bound, and figures without one only inform."""

    title: str
    unit: str
    target: float | None = None


KINDS = {
    "cpu_call": Kind("CPU per call", "us", 400),
    "cpu_stream": Kind("CPU per 64-event stream", "us", 650),
    "cpu_paced": Kind("CPU per stream, trickled", "us"),
    "added_p50": Kind("added latency, p50", "ms", 1),
    "added_p99": Kind("added latency, p99", "ms", 4),
    "relay_p50": Kind("added by a bare relay, p50", "ms"),
    "relay_p99": Kind("added by a bare relay, p99", "ms"),
    "other_work": Kind("other work on its core", "%"),
    "rss_idle": Kind("RSS idle", "MiB", 100),
    "pss_idle": Kind("PSS idle", "MiB"),
    "rss_before": Kind("RSS before long run", "MiB"),
    "rss_after": Kind("RSS after long run", "MiB"),
    "rss_growth": Kind("RSS growth, long run", "MiB", 4),
    "calls_per_second": Kind("calls a second", ""),
    "streams_per_second": Kind("streams a second", ""),
    "redis_scripts": Kind("Redis scripts per call", ""),
    "admission": Kind("admission in 4 dimensions, CPU of the gateway", "us", 60),
    "redis_admission": Kind("the same and its settlement, CPU of Redis", "us", 1e6 / 15_000),
    "free_scripts": Kind("Redis scripts per call of a key without limits", "", 0.05),
    "choice_8": Kind("choosing among 8 targets", "us", 15),
    "choice_256": Kind("choosing among 256 targets", "us", 60),
    "keys": Kind("reading the keys of a chat", "us"),
    "reload": Kind("reload of 1,000 routes, from SIGHUP", "s", 1),
    "reload_watched": Kind("the same, from the renaming of the file", "s"),
    "reload_step": Kind("p99 latency while reloading / before", ""),
    "quiet_p50": Kind("latency before reloads, p50", "ms"),
    "quiet_p99": Kind("latency before reloads, p99", "ms"),
    "quiet_max": Kind("latency before reloads, slowest", "ms"),
    "reloading_p50": Kind("latency while reloading, p50", "ms"),
    "reloading_p99": Kind("latency while reloading, p99", "ms"),
    "reloading_max": Kind("latency while reloading, slowest", "ms"),
    "garbage": Kind("CPU to refuse a garbage key", "us", 20),
}
RISING = ("calls_per_second", "streams_per_second")


@dataclass(slots=True)
class Figures:
    """What was measured of one gateway: every figure once a round."""

    values: dict[str, list[float]] = field(default_factory=dict)
    calls: int = 0
    failures: int = 0
    first_fault: str | None = None

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def count(self, calls: int, failures: int, first_fault: str | None) -> None:
        """Add what became of calls."""
        self.calls += calls
        self.failures += failures
        self.first_fault = self.first_fault or first_fault

    def median(self, name: str) -> float | None:
        values = self.values.get(name)
        return statistics.median(values) if values else None

    def best(self, name: str) -> float | None:
        values = self.values.get(name)
        return (max if name in RISING else min)(values) if values else None

    def is_met(self, name: str) -> bool | None:
        median, target = self.median(name), KINDS[name].target
        return None if median is None or target is None else median <= target

    def as_json(self) -> dict[str, object]:
        figures = {
            name: {
                "unit": KINDS[name].unit,
                "target": KINDS[name].target,
                "median": self.median(name),
                "best": self.best(name),
                "met": self.is_met(name),
                "rounds": values,
            }
            for name, values in self.values.items()
        }
        return {"calls": self.calls, "failures": self.failures, "first_fault": self.first_fault, "figures": figures}


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"


def own_table(figures: Figures) -> Table:
    """Every figure with its target beside it."""
    table = Table(title="trunkline: one core, Redis, metrics and limits on", title_justify="left")
    table.add_column("figure")
    for heading in ("target", "median", "best"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("")
    marks = {True: "[green]met[/]", False: "[red]not met[/]", None: ""}
    for name, kind in KINDS.items():
        if name in figures.values:
            target = "" if kind.target is None else f"<= {kind.target:g}"
            median, best = shown(figures.median(name)), shown(figures.best(name))
            table.add_row(kind.title, target, median, best, kind.unit, marks[figures.is_met(name)])
    return table


def peer_table(measured: Mapping[str, Figures]) -> Table:
    """One row a gateway, from the same run."""
    names = ("cpu_call", "cpu_stream", "cpu_paced", "added_p50", "added_p99", "rss_idle", "calls_per_second")
    table = Table(title="same machine, same stub, same run (medians)", title_justify="left")
    table.add_column("gateway")
    for name in names:
        kind = KINDS[name]
        table.add_column(f"{kind.title}, {kind.unit}" if kind.unit else kind.title, justify="right")
    for gateway, figures in measured.items():
        table.add_row(gateway, *(shown(figures.median(name)) for name in names))
    return table
