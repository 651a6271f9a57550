"""The figures of a run, the targets they are held to, and the table that shows both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from rich.table import Table

OWN, LOCAL, PEER, RELAY = "trunkline", "trunkline-local", "vllm-router", "relay"
GATEWAYS = ("nginx", RELAY, PEER, "sglang-router", "litellm", OWN, LOCAL)


@dataclass(frozen=True, slots=True)
class Kind:
    """A figure that every gateway may have."""

    title: str
    unit: str
    digits: int = 0


KINDS = {
    "whole": Kind("whole answer", "us"),
    "stream": Kind("stream, 66 events at once", "us"),
    "paced": Kind("paced stream, an event", "us", 1),
    "64k": Kind("64 KiB prompt", "us"),
    "2m": Kind("2 MiB body", "us"),
    "ttft_p50": Kind("added TTFT p50", "ms", 2),
    "ttft_p99": Kind("added TTFT p99", "ms", 2),
    "most_streams": Kind("50-token streams held", ""),
    "rss_idle": Kind("RSS idle", "MiB"),
    "rss_stream": Kind("RSS a stream", "KiB"),
    "whole_rate": Kind("calls/s", ""),
}


@dataclass(slots=True)
class Figures:
    """What was measured: every figure of a gateway once a round."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, gateway: str, name: str, value: float) -> None:
        self.values.setdefault(gateway, {}).setdefault(name, []).append(value)

    def median(self, gateway: str, name: str) -> float | None:
        values = self.values.get(gateway, {}).get(name)
        return statistics.median(values) if values else None

    def best(self, gateway: str, name: str) -> float | None:
        """Of a few short rounds the one that other work on the machine has disturbed least."""
        return min(self.values.get(gateway, {}).get(name, ()), default=None)

    def ratio(self, name: str, to: str) -> float | None:
        """Our median over that of another gateway."""
        ours, theirs = self.median(OWN, name), self.median(to, name)
        return None if ours is None or not theirs else ours / theirs

    def difference(self, name: str, less: str) -> float | None:
        """Our figure less another of ours."""
        more, base = self.median(OWN, name), self.median(OWN, less)
        return None if more is None or base is None else more - base

    def as_json(self) -> dict[str, dict[str, dict[str, object]]]:
        return {
            gateway: {name: {"median": statistics.median(rounds), "rounds": rounds} for name, rounds in values.items()}
            for gateway, values in self.values.items()
        }


Outcome = Literal["met", "not met", "not measured"]


@dataclass(frozen=True, slots=True)
class Target:
    """Something that is promised of a call, with what was measured."""

    title: str
    unit: str
    value: float | None
    bound: float | None
    at_least: bool = False
    digits: int = 0

    @property
    def outcome(self) -> Outcome:
        if self.value is None or self.bound is None:
            return "not measured"
        return "met" if (self.value >= self.bound if self.at_least else self.value <= self.bound) else "not met"

    def shown(self) -> tuple[str, str, str]:
        """The target, what was measured, and whether it is met."""
        sign = ">=" if self.at_least else "<="
        bound = "-" if self.bound is None else f"{sign} {shown(self.bound, self.digits)} {self.unit}".strip()
        return bound, shown(self.value, self.digits), self.outcome


def targets(figures: Figures, frames: Mapping[str, Mapping[str, int]]) -> list[Target]:
    """All targets; `frames` are what calls enter, by kind of answer (`frames.py`)."""
    mine, against = partial(figures.median, OWN), partial(figures.ratio, to=PEER)
    small = mine("whole")
    whole, stream = frames.get("whole", {}), frames.get("stream", {})
    return [
        Target("whole answer", "us", small, 130),
        Target("whole answer / vllm-router", "", against("whole"), 2.6, digits=2),
        Target("stream of 66 events at once", "us", mine("stream"), 250),
        Target("stream of 66 events at once / vllm-router", "", against("stream"), 0.75, digits=2),
        Target("paced stream, an event", "us", mine("paced"), 25, digits=1),
        Target("paced stream, an event / vllm-router", "", against("paced"), 1.5, digits=2),
        Target("64 KiB prompt: whole answer + 1 us a KiB", "us", mine("64k"), None if small is None else small + 64),
        Target("64 KiB prompt / vllm-router", "", against("64k"), 1.0, digits=2),
        Target("2 MiB body: whole answer + 1 us a KiB", "us", mine("2m"), None if small is None else small + 2048),
        Target("2 MiB body / vllm-router", "", against("2m"), 1.0, digits=2),
        Target("added TTFT at 50 calls/s, p50", "ms", mine("ttft_p50"), 0.6, digits=2),
        Target("added TTFT at 50 calls/s, p99", "ms", mine("ttft_p99"), 1.2, digits=2),
        Target("streams of 50 tokens/s, p99 gap < 40 ms", "", mine("most_streams"), 600, at_least=True),
        Target("8 targets: more than 1 target", "us", figures.difference("targets_8", "targets_1"), 15),
        Target("256 targets: more than 1 target", "us", figures.difference("targets_256", "targets_1"), 80),
        Target("limits of a call, in the gateway", "us", figures.difference("whole", "unlimited"), 25),
        Target("limits of a call, in Redis", "us", figures.difference("whole_redis", "unlimited_redis"), 35),
        Target("Redis scripts a call", "", mine("whole_scripts"), 2.1, digits=2),
        Target("own modules of a whole answer", "", whole.get("modules"), 25),
        Target("own functions of a whole answer", "", whole.get("functions"), 80),
        Target("own frames of a whole answer", "", whole.get("frames"), 100),
        Target("own frames of a stream of 16 events", "", stream.get("frames"), 164),
        Target("RSS idle, without pydantic", "MiB", mine("rss_idle"), 70),
        Target("RSS of an open stream", "KiB", mine("rss_stream"), 25),
        Target("RSS growth, a 1,000 calls", "KiB", mine("rss_growth"), 42, digits=1),
        Target("choosing among 8 targets, alone", "us", mine("choice_8"), 15, digits=1),
        Target("choosing among 256 targets, alone", "us", mine("choice_256"), 60, digits=1),
        Target("refusing a garbage key, alone", "us", mine("garbage"), 20, digits=1),
        Target("reading a chat of 500 bytes and writing it, alone", "us", mine("reading_500"), 18, digits=1),
        Target(
            "the same of 64 KiB, more than that", "us", figures.difference("reading_64k", "reading_500"), 64, digits=1
        ),
        Target("reading an event that comes alone", "us", mine("event"), 5, digits=1),
        Target(
            "the same with usage in it (continuous_usage), more than that",
            "us",
            figures.difference("event_usage", "event"),
            8,
            digits=1,
        ),
        Target("longest step of a hostile body of 19 MiB / a benign one's", "", mine("hostile_step"), 2, digits=2),
        Target("reload of 1,000 routes, from SIGHUP", "s", mine("reload"), 1, digits=2),
    ]


def shown(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def rows(figures: Figures) -> list[tuple[str, list[str]]]:
    """By gateway, a cell for each kind."""
    present = [name for name in GATEWAYS if name in figures.values]
    return [(name, [shown(figures.median(name, kind), KINDS[kind].digits) for kind in KINDS]) for name in present]


def headings() -> list[str]:
    return [f"{kind.title}, {kind.unit}" if kind.unit else kind.title for kind in KINDS.values()]


def peers_table(figures: Figures) -> Table:
    """One row a gateway."""
    table = Table(title="one core each; same machine, stub and run (medians)", title_justify="left")
    table.add_column("gateway")
    for heading in headings():
        table.add_column(heading, justify="right")
    for name, cells in rows(figures):
        table.add_row(name, *cells)
    return table


def targets_table(held: Sequence[Target]) -> Table:
    """One row a target."""
    colours = {"met": "[green]met[/]", "not met": "[red]not met[/]", "not measured": "[dim]not measured[/]"}
    table = Table(title="trunkline with everything on, and its targets", title_justify="left")
    table.add_column("figure")
    table.add_column("target", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("")
    for target in held:
        bound, value, outcome = target.shown()
        table.add_row(target.title, bound, value, colours[outcome])
    return table
