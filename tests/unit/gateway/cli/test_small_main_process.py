"""The main process of `trunkline serve` stays small: what only workers need is not loaded there."""

from __future__ import annotations

import subprocess
import sys

MAIN = """
import sys
import gateway.cli.serve
from gateway.store import examine
examine("redis://user:secret@localhost:6379/0")
print(*(name for name in ("asyncio", "litestar", "prometheus_client", "redis", "ssl", "uvloop") if name in sys.modules))
"""


def test_the_main_process_loads_nothing_of_a_workers() -> None:
    done = subprocess.run([sys.executable, "-c", MAIN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
