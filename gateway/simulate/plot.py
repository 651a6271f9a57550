"""The plot of a comparison: which part of the calls had its first token how soon, for each policy."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway.simulate.study import Run

FORMATS: Final = (".png", ".svg")
STEPS: Final = 400
LEAST_SECONDS: Final = 0.001


class NoPlot(Exception):
    """No plot can be drawn; the text says what to do."""


def ready(path: Path) -> None:
    """Whether a plot can be drawn to this file: asked before the work. Raises `NoPlot`."""
    if path.suffix.lower() not in FORMATS:
        raise NoPlot(f"{path}: a plot is a file of type {' or '.join(FORMATS)}")
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise NoPlot("a plot needs matplotlib: pip install 'trunkline[plot]'") from None


def draw(runs: Sequence[Run], title: str, path: Path) -> None:
    """Write the plot. Raises `NoPlot` where the file cannot be written."""
    matplotlib = importlib.import_module("matplotlib")
    figures = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context({"svg.hashsalt": "trunkline"}):  # the same file for the same figures
        figure = figures.Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for run in runs:
            outcome = run.outcome
            name = f"{outcome.policy} (mean {outcome.ttft_mean:.3g} s, hit {outcome.hit_ratio:.0%})"
            axes.plot(*_curve(sorted(seconds for _, seconds in run.ttft)), label=name)
        axes.set(xscale="log", ylim=(0, 1), xlabel="time to first token, seconds", ylabel="part of the calls")
        axes.set_title(title.replace(": ", "\n", 1), fontsize="small")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None, dpi=150)
        except OSError as error:
            raise NoPlot(f"{path}: cannot be written: {error.strerror}") from None


def _curve(ttft: Sequence[float]) -> tuple[list[float], list[float]]:
    """Seconds and the part of the calls that had no more: as many points as an eye can tell apart."""
    last = len(ttft) - 1
    places = [last * step // STEPS for step in range(STEPS + 1)] if ttft else []
    return [max(LEAST_SECONDS, ttft[place]) for place in places], [(place + 1) / len(ttft) for place in places]
