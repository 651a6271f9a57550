"""The soak for some seconds and with one gateway: it runs, and nothing is violated. At full size it is `make soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from faults.report import Report

SOAK = Path(__file__).parents[1] / "soak" / "soak.py"


def test_soak(report: Report) -> None:
    command = [sys.executable, str(SOAK), "--minutes", "0.3", "--gateways", "1", "--seed", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr[-2000:]
    told = json.loads(done.stdout)
    violated = [row for row in told["invariants"] if not row["ok"]]
    report.add(
        "soak, in small: invariants",
        len(told["invariants"]),
        "0 violated",
        f"{len(violated)}",
        f"{told['calls']} calls",
    )
    assert not violated, (violated, told["wrong"][-5:])
    assert done.returncode == 0
