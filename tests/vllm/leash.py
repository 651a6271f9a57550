"""Run a command and end its whole process group when standard input closes.

    python leash.py COMMAND...

Whoever starts this keeps the other end of the pipe. However that process ends, killed included, the pipe closes with it
and no server is left behind.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

GRACE = 10.0


def lead(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while child.poll() is None:
            readable, _, _ = select.select([0], [], [], 0.2)
            if readable and not os.read(0, 1024):
                break
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # also those that outlived their parent
    return child.wait()


if __name__ == "__main__":
    sys.exit(lead(sys.argv[1:]))
