"""The way of a call stays short: it enters no more of our modules, functions and frames than was agreed on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
BUDGETS: dict[str, dict[str, int]] = json.loads((BENCH / "frames.json").read_text())


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """By kind of answer. A process of its own: a profiler counts in it, and records go to its standard output."""
    done = subprocess.run([sys.executable, BENCH / "frames.py", "--json"], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("kind", BUDGETS)
def test_a_call_enters_no_more_than_its_budget(kind: str, counted: dict[str, dict[str, int]]) -> None:
    over = {name: number for name, number in counted[kind].items() if number > BUDGETS[kind][name]}
    assert not over, f"more than {BUDGETS[kind]}; `python tests/bench/frames.py -v` lists what a call enters"


def test_all_kinds_have_a_budget(counted: dict[str, dict[str, int]]) -> None:
    assert counted.keys() == BUDGETS.keys()
