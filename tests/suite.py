"""`make test`: two runs of pytest beside each other; the options are pytest's, for both.

Tests that wait (for gateways, time-outs and each other) get more processes than there are cores; those that compute get
two. Apart, because every process collects all the tests of its run. What the second prints is shown when both are done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

WAITING = ("tests/integration", "tests/tgi", "tests/fuzz")
COMPUTING = ("tests/unit", "tests/contract", "tests/project")
NO_TESTS = 5
"""Pytest's status when none was selected."""


def command(folders: tuple[str, ...], processes: int) -> list[str]:
    return [sys.executable, "-m", "pytest", *folders, "-n", str(processes), "-m", "not slow", *sys.argv[1:]]


def main() -> int:
    processes = int(os.environ.get("PROCESSES", "5"))
    with tempfile.TemporaryFile() as output:
        computing = subprocess.Popen(command(COMPUTING, 2), stdout=output, stderr=subprocess.STDOUT)
        try:
            waited = subprocess.run(command(WAITING, processes), check=False).returncode
            computed = computing.wait()
        except KeyboardInterrupt:  # both got the signal, and end what they started
            computing.wait()
            return 130
        output.seek(0)
        sys.stdout.write(output.read().decode(errors="replace"))
    statuses = {waited, computed}
    if statuses == {NO_TESTS}:
        return NO_TESTS
    return max(statuses - {NO_TESTS})


if __name__ == "__main__":
    sys.exit(main())
