"""Writes a run down: as JSON, as a chart, and as the tables of docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import chart
from figures import Figures, Target, headings, rows

DOCS = Path(__file__).parents[2] / "docs"
PAGE, DATA, CHART = DOCS / "performance.md", DOCS / "performance.json", DOCS / "img" / "performance.svg"
BEGIN, END = "<!-- figures: `make bench ARGS=--docs` -->", "<!-- end of figures -->"
PACKAGES = ("trunkline", "uvloop", "httptools", "msgspec", "litestar", "redis")


def conditions(tools: Mapping[str, str]) -> dict[str, str]:
    """The machine, and the versions of what took part."""
    found = {"cpu": _processor(), "cores": str(os.cpu_count()), "kernel": platform.release()}
    found |= {"python": platform.python_version(), **tools}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"load average": f"{os.getloadavg()[0]:.1f}"}


def as_json(
    figures: Figures,
    held: Sequence[Target],
    frames: Mapping[str, Mapping[str, int]],
    machine: Mapping[str, str],
    left_out: Sequence[str],
) -> dict[str, Any]:
    """Everything that was measured, ready for `json.dumps`."""
    return {
        "conditions": dict(machine),
        "targets": [
            {"title": each.title, "unit": each.unit, "bound": each.bound, "value": each.value, "outcome": each.outcome}
            for each in held
        ],
        "gateways": figures.as_json(),
        "frames": {kind: dict(numbers) for kind, numbers in frames.items()},
        "left out": list(left_out),
    }


def write(figures: Figures, held: Sequence[Target], machine: Mapping[str, str], found: Mapping[str, Any]) -> None:
    """Replace the figures of docs/performance.md, its chart and its data."""
    caption = ", ".join(f"{name} {machine[name]}" for name in ("cpu", "python", "nginx", "wrk") if name in machine)
    DATA.write_text(json.dumps(found, indent=1) + "\n")
    CHART.write_text(chart.svg(figures, caption))
    cells = [(name, *values) for name, values in rows(figures)]
    listed = [(target.title, *target.shown()) for target in held]
    text = "\n".join(
        [
            BEGIN,
            "",
            "Measured on: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
            "",
            _table(["gateway", *headings()], cells),
            "",
            "![CPU by gateway](img/performance.svg)",
            "",
            _table(["trunkline, everything on", "target", "measured", ""], listed),
            "",
            END,
        ]
    )
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: text, page, flags=re.DOTALL))


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()
